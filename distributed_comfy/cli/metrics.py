"""``distributed-comfy metrics``."""
from __future__ import annotations

import sys
import threading
from typing import Any

import click

from distributed_comfy.cli.commands import interruptibly
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.errors import MetricsMissing
from distributed_comfy.orchestrator.servers import redis_servers, refuse_where_joined
from distributed_comfy.settings import read_settings


@click.command(short_help="Tell Prometheus how the cluster is.")
@click.option("--port", type=click.IntRange(0, 65_535), default=9808, show_default=True, metavar="N", help="0: a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="IP", help="0.0.0.0: all of this host's; it asks for no password.")
@click.pass_obj
def metrics(output: Output, /, port: int, host: str) -> None:
    """Answer Prometheus at /metrics: items, waiting, seconds, retries, bytes, workers and their GPU memory, both Redis servers.

    It only looks, and reads the table when it is asked. One for a cluster is enough. Prompts and their titles are not shown, names of
    workers and hosts are. Ctrl-C ends it.

    \b
    Examples:
      distributed-comfy metrics                                 http://127.0.0.1:9808/metrics, for this host only
      distributed-comfy metrics --host 10.0.0.1 --port 9000
    """
    server = _server()
    settings = read_settings()
    set_up_logging(settings, output, audience="supervisor")
    refuse_where_joined(settings, "distributed-comfy metrics")

    def work(stop: threading.Event) -> None:
        with redis_servers(settings) as servers, server(settings, servers, host, port) as url:
            output.say(f"Metrics are at {url} and are those of {servers.shown}")
            stop.wait()

    interruptibly(output, work)


def _server() -> Any:
    try:
        from distributed_comfy.orchestrator.metrics import MetricsServer
    except ImportError as error:
        raise MetricsMissing(python=sys.executable, reason=str(error)) from error
    return MetricsServer
