"""``distributed-comfy serve``."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from distributed_comfy.cli.commands import interruptibly
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.comfyui.gpu_config import taken_over
from distributed_comfy.orchestrator.servers import refuse_where_joined
from distributed_comfy.panel.place import TakenOver
from distributed_comfy.serve.application import ServeOptions
from distributed_comfy.serve.server import Serving, serve_relay
from distributed_comfy.settings import read_settings

_ELSEWHERE = "by the name of this host, or of the proxy before it: `distributed-comfy invite --url wss://YOUR-NAME` (docs/relay.md)"
_pem = click.Path(path_type=Path, dir_okay=False)


@click.command(short_help="Let workers join through HTTP: a proxy, a tunnel, port 443.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="IP", help="0.0.0.0: all of this host's; needs TLS or a proxy.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8187, show_default=True, metavar="N", help="0: a free one.")
@click.option("--tls-cert", type=_pem, metavar="FILE", help="Certificate with its chain (PEM); without it plain HTTP for a proxy.")
@click.option("--tls-key", type=_pem, metavar="FILE", help="Its key (PEM), where that is not in the same file.")
@click.option("--allow-plain", is_flag=True, help="Let clients log in without encryption, in a network where nobody listens.")
@click.option("--panel/--no-panel", default=True, help="The page on which workers and jobs are seen and steered [--panel].")
@click.option("--tunnel", is_flag=True, help="Open a public address with cloudflared, where that is installed.")
@click.pass_obj
def serve(output: Output, /, panel: bool, **options: Any) -> None:
    """Relay Redis through WebSockets, so that workers join from where only HTTP gets through (docs/relay.md).

    Only users that were invited get in, and of what they send only what a worker needs passes. Without DC_REDIS_URL it keeps this user's
    embedded Redis alive. GET /distributed/v2/health tells whether all is well. Ctrl-C ends it.

    It also serves the panel, a page for workers and jobs. In a terminal it prints an address with a token: whoever has it may do everything
    there. Elsewhere, as in a journal that others read, the address comes without it, and `distributed-comfy comfyui token` prints it.

    \b
    Examples:
      distributed-comfy serve                                   for a proxy or tunnel on this host
      distributed-comfy serve --tunnel                          with a public address by cloudflared
      distributed-comfy serve --host 0.0.0.0 --port 443 --tls-cert fullchain.pem --tls-key privkey.pem
    """
    settings = read_settings()
    set_up_logging(settings, output, audience="supervisor")
    refuse_where_joined(settings, "distributed-comfy serve")

    def ready(serving: Serving) -> None:
        others = "" if options["tunnel"] else f" here; from elsewhere {_ELSEWHERE}"
        output.say(f"Relay for {serving.servers.shown} is at {serving.url}; workers join by {serving.join_url}{others}")
        if serving.panel_url:
            output.say(f"Panel: {panel_line(serving, to_terminal=sys.stdout.isatty())}")

    def take(text: str) -> TakenOver:
        return taken_over(text, settings.host_name)

    interruptibly(output, lambda stop: serve_relay(settings, ServeOptions(**options), ready, stop, take if panel else None))


def panel_line(serving: Serving, *, to_terminal: bool) -> str:
    """Where the panel is; with the token behind ``#``, a part that no server and no proxy sees, only where it is not written down."""
    if to_terminal:
        return f"{serving.panel_url}#token={serving.panel_token}"
    return f"{serving.panel_url} (it asks for the token, which `distributed-comfy comfyui token` prints)"


