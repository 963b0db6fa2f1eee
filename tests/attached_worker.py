"""``distributed-comfy worker`` with engine processes that wait for their ComfyUI for a moment only."""
from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from distributed_comfy.cli.main import main
from distributed_comfy.orchestrator import worker

_options = worker.engine_options


def engine_options(*args: Any) -> Any:
    return replace(_options(*args), comfyui_wait_s=0.2)


if __name__ == "__main__":
    worker.engine_options = engine_options
    main(["worker", "--end-with-stdin", *sys.argv[1:]])
