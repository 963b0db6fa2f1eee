"""The threads of jobs whose nodes do not ask for them yet: a few for all, however many prompts wait."""
from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger(__name__)

ENTERING = 4
"""Jobs that are entered in the table, or cleared away, at the same time."""
COLLECTING = 4
"""Jobs that are collected at the same time, beside the one whose node waits, and those of which results lie in the blob store already."""

Task = Callable[[], None]


class Lanes:
    """One per process; safe to use from several threads."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Task] = SimpleQueue()
        self._threads = 0
        self._entered: deque[Task] = deque()
        self._collecting = 0
        self._lock = threading.Lock()

    def soon(self, task: Task) -> None:
        """Run something short in the order of the calls, as soon as one of a few threads is free."""
        self._tasks.put(task)
        with self._lock:
            if self._threads == ENTERING:
                return
            self._threads += 1
            number = self._threads
        threading.Thread(target=self._work, name=f"distributed-comfy jobs {number}", daemon=True).start()

    def collect(self, task: Task) -> None:
        """Run something that lasts as long as a job does, when its turn comes."""
        with self._lock:
            self._entered.append(task)
        self._fill()

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                task()
            except Exception:  # the other jobs need this thread, too
                log.exception("a job went wrong; please report it")

    def _fill(self) -> None:
        while True:
            with self._lock:
                if self._collecting == COLLECTING or not self._entered:
                    return
                task = self._entered.popleft()
                self._collecting += 1
            threading.Thread(target=self._collect, args=(task,), name="distributed-comfy collects", daemon=True).start()

    def _collect(self, task: Task) -> None:
        try:
            task()
        finally:
            with self._lock:
                self._collecting -= 1
            self._fill()
