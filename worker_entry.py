"""A worker by environment alone, for supervisors and containers: ``python worker_entry.py`` is ``distributed-comfy worker``.

Every choice is a ``DC_`` variable (docs/settings.md), such as ``DC_REDIS_URL``, ``DC_DEVICE``, ``DC_WORKER_NAME`` and ``COMFYUI_PATH``.
SIGTERM lets the running item finish for up to ``DC_DRAIN_TIMEOUT_S``; what is not finished goes back to the queue.
"""
from __future__ import annotations

import sys

from distributed_comfy.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "worker")
    main()
