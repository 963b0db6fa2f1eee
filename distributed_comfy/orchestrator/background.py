"""A run in a thread of its own: its result or error for whoever waits, its job as soon as there is one."""
from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Starts ``work`` in a thread at once.

    Args:
        work: given the event that asks it to end.
        name: of the thread.
    """

    def __init__(self, work: Callable[[threading.Event], T], name: str) -> None:
        self._work = work
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._result: list[T] = []
        self._error: BaseException | None = None
        # A daemon: a process that ends does not wait for a job, which is then parked for whoever attaches to it.
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask the work to end; from any thread or signal handler, more than once too."""
        self._stop.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """True once the work has ended; False after ``timeout_s``."""
        return self._ended.wait(timeout_s)

    def result(self) -> T:
        """What the work gave, once it has ended; raises what it raised."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _run(self) -> None:
        try:
            self._result.append(self._work(self._stop))
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result, and raised there
            self._error = error
        finally:
            self._ended.set()
