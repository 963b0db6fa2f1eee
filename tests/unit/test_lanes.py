"""Many jobs share a few threads."""
from __future__ import annotations

import functools
import threading

from distributed_comfy.comfyui.lanes import COLLECTING, ENTERING, Lanes
from tests.command_line import until


def test_a_few_are_collected_at_a_time_in_the_order_of_their_entry() -> None:
    lanes, begun, go_on = Lanes(), [], threading.Semaphore(0)

    def job(number: int) -> None:
        begun.append(number)
        go_on.acquire()

    for number in range(50):
        lanes.collect(functools.partial(job, number))
    until(lambda: len(begun) == COLLECTING)
    go_on.release()
    until(lambda: len(begun) == COLLECTING + 1)
    for _ in range(50):
        go_on.release()
    until(lambda: len(begun) == 50)
    assert sorted(begun) == list(range(50))


def test_short_tasks_run_on_a_few_threads_also_after_one_that_failed() -> None:
    lanes, threads, done = Lanes(), set(), threading.Semaphore(0)

    def fails() -> None:
        raise ValueError("of a test")

    def notes() -> None:
        threads.add(threading.current_thread().name)
        done.release()

    for _ in range(ENTERING + 1):
        lanes.soon(fails)
    for _ in range(50):
        lanes.soon(notes)
    for _ in range(50):
        assert done.acquire(timeout=10.0)
    assert 1 <= len(threads) <= ENTERING
