"""A consumer of its own, to be killed: starts an engine, runs one probe in it, prints the engine's pid, sleeps."""
from __future__ import annotations

import json
import sys
import threading
import time

from distributed_comfy.engine.host import EngineProcess
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.protocol import Started
from distributed_comfy.messages import RunRequest, from_plain


def main() -> None:
    facts = json.loads(sys.argv[1])
    running = threading.Event()
    process = EngineProcess(
        from_plain(EngineOptions, facts["options"]), lambda event: running.set() if isinstance(event, Started) else None
    )
    process.start(timeout_s=60)
    process.run(RunRequest("c1", "j", 0, "generate", facts["prompt"], ("9",), {}))
    running.wait(30)
    time.sleep(0.3)  # well inside the node
    print(process.pid, flush=True)  # noqa: T201 - the test reads it
    time.sleep(600)


if __name__ == "__main__":
    main()
