"""A worker with the built-in engine and the node classes of the tests beside its own; the real command has no option for that."""
from __future__ import annotations

import sys
from dataclasses import replace

from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.orchestrator.servers import redis_servers
from distributed_comfy.orchestrator.worker import engine_options
from distributed_comfy.settings import read_settings
from tasks.consumer import run_worker


def main() -> int:
    """Be a worker by the environment, until standard input closes."""
    settings = read_settings()
    set_up_logging(settings, Output(), audience="supervisor")
    with redis_servers(settings) as servers:
        options = replace(engine_options(settings, servers), node_provider="tests.rule_nodes:node_classes")
        return run_worker(settings, servers.redis_url, servers.blob_url, options, end_with_stdin=True)


if __name__ == "__main__":
    sys.exit(main())
