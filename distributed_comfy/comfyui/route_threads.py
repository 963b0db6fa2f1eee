"""The threads in which the pack's routes wait for files, Redis and agents: ComfyUI's own are left to ComfyUI."""
from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

THREADS = 16
"""What a page and a few scripts ask at the same time; more wait for one another, and for nobody else."""


class RouteThreads:
    """One per pack; a thread begins when it is needed."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="distributed-comfy route")

    async def run(self, call: Callable[..., T], *given: object) -> T:
        """What ``call(*given)`` gives, in one of the threads and the context of the caller.

        Raises:
            RuntimeError: they have ended.
            Whatever the call raises.
        """
        bound = functools.partial(contextvars.copy_context().run, call, *given)
        return await asyncio.get_running_loop().run_in_executor(self._pool, bound)

    def end(self) -> None:
        """Begin nothing any more; what waits its turn is dropped, what runs goes on for as long as its servers let it."""
        self._pool.shutdown(wait=False, cancel_futures=True)
