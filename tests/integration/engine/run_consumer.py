"""A consumer of its own, to be killed: starts an engine, runs one prompt in it, prints the engine's pid once that computes, sleeps."""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from distributed_comfy.engine.host import EngineProcess
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.protocol import Progress
from distributed_comfy.messages import RunRequest, from_plain


def main() -> None:
    facts = json.loads(sys.argv[1])
    mark = Path(facts["mark"])
    options = from_plain(EngineOptions, facts["options"])
    process = EngineProcess(options, lambda event: mark.touch() if isinstance(event, Progress) else None)
    process.start(timeout_s=60)
    process.run(RunRequest("c1", "j", 0, "generate", facts["prompt"], ("9",), {}))
    while not mark.exists():  # torch is loaded before the node runs, and that lets other threads run
        time.sleep(0.02)
    time.sleep(0.2)
    print(process.pid, flush=True)  # noqa: T201 - the test reads it
    time.sleep(600)


if __name__ == "__main__":
    main()
