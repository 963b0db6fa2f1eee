"""``distributed-comfy flower``."""
from __future__ import annotations

import click

from distributed_comfy.cli.commands import naming_options
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.orchestrator.servers import redis_servers, refuse_where_joined
from distributed_comfy.settings import read_settings
from tasks.monitor import FlowerOptions, check_flower_options, serve_flower


@click.command(short_help="Show workers and items on a web page (Flower).")
@click.option("--port", type=click.IntRange(0, 65_535), default=5555, show_default=True, metavar="N", help="0: a free one.")
@click.option(
    "--host", "--address", "host", default="127.0.0.1", show_default=True, metavar="IP",
    help="0.0.0.0: all of this host's; needs --basic-auth.",
)  # fmt: skip
@click.option("--basic-auth", metavar="USER:PASS", help="Ask for a name and password [DC_FLOWER_BASIC_AUTH, which other users cannot see].")
@click.pass_obj
def flower(output: Output, /, port: int, host: str, basic_auth: str | None) -> None:
    """Show the cluster in Flower, the web page of Celery: workers by host and device, items by job, node class, seed and seconds.

    It shows what happens from now on and stores nothing. Its HTTP API (/api/tasks, /api/workers) needs --basic-auth. Ctrl-C ends it.

    \b
    Examples:
      distributed-comfy flower                                       http://127.0.0.1:5555, for this host only
      DC_FLOWER_BASIC_AUTH=me:secret distributed-comfy flower --host 0.0.0.0
    """
    with naming_options(flower_basic_auth=("--basic-auth", basic_auth)):
        settings = read_settings(flower_basic_auth=basic_auth)
    options = FlowerOptions(port, host, settings.flower_basic_auth)
    check_flower_options(options)
    set_up_logging(settings, output, audience="supervisor")
    refuse_where_joined(settings, "distributed-comfy flower")
    with redis_servers(settings) as servers:
        serve_flower(settings, servers.redis_url, options, lambda url: output.say(f"Flower is at {url} and shows {servers.shown}"))
