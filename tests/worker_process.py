"""A worker with the built-in engine and the node classes of the tests beside its own; the real command has no option for that.

SIGUSR1 makes its main thread hang, and with it Celery's consumer; SIGUSR2 its lease thread.
"""
from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from typing import Any, NoReturn

from distributed_comfy.lasting_imports import end_without_collection, lasting_imports

with lasting_imports():
    from distributed_comfy.cli.logs import set_up_logging
    from distributed_comfy.cli.output import Output
    from distributed_comfy.messages import JobRecord
    from distributed_comfy.orchestrator.worker import engine_options, servers_to_serve
    from distributed_comfy.settings import read_settings
    from distributed_comfy.state.workers import WorkerTable
    from tasks.consumer import run_worker


def main() -> int:
    """Be a worker by the environment, until standard input closes; TEST_JOIN is the token of an invitation."""
    end_without_collection()
    signal.signal(signal.SIGUSR1, _hang)
    signal.signal(signal.SIGUSR2, lambda *_: setattr(WorkerTable, "renew", _hang))
    settings = read_settings()
    if os.environ.get("TEST_JOB_VERSION"):  # plays a worker of another version of this project
        JobRecord.version = int(os.environ["TEST_JOB_VERSION"])
    set_up_logging(settings, Output(), audience="supervisor")
    with servers_to_serve(settings, os.environ.get("TEST_JOIN", "")) as (mine, servers):
        options = replace(engine_options(mine, servers), node_provider="tests.rule_nodes:node_classes")
        return run_worker(mine, servers.redis_url, servers.blob_url, options, end_with_stdin=True)


def _hang(*_: Any) -> NoReturn:
    while True:
        time.sleep(60)


if __name__ == "__main__":
    sys.exit(main())
