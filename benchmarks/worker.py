"""A worker process as any other, but for its node classes: ``python -m benchmarks.worker PROVIDER``, settings from the environment."""
from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.orchestrator.worker import engine_options
from distributed_comfy.settings import read_settings
from tasks.consumer import run_worker

ROOT = Path(__file__).resolve().parent.parent


def main(provider: str) -> int:
    """Be a worker until standard input closes."""
    settings = read_settings()
    logging.basicConfig(level=settings.log_level, format="%(created).6f %(name)s %(message)s")
    for name in ("celery", "kombu"):  # as `distributed_comfy.cli.logs` does
        logging.getLogger(name).setLevel("WARNING")
    servers = Servers(settings.redis_url, settings.blob_url, embedded=False)
    options = replace(engine_options(settings, servers), node_provider=provider, import_paths=(str(ROOT),), preload=True)
    return run_worker(settings, servers.redis_url, servers.blob_url, options, end_with_stdin=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
