"""ComfyUI's queue as it is looked at: a stand-in with the same fields and lock, and its executor's announcements."""
from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any, cast

from distributed_comfy.comfyui.accepted import Place
from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.queue_watch import QueueWatch


class Executor:
    """Says what it was told, as ComfyUI's does."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def add_message(self, event: str, facts: dict[str, Any], broadcast: bool) -> None:
        self.said.append(event)


class Watched:
    """A watch over a queue, and what it told."""

    def __init__(self) -> None:
        class OwnExecutor(Executor):
            pass

        self.queue = SimpleNamespace(mutex=threading.RLock(), queue=[], currently_running={}, history={})
        self.executor = OwnExecutor()
        self.ended: list[tuple[Place, str]] = []
        self.cached: list[tuple[str, frozenset[str]]] = []
        self.interrupted: list[Place] = []
        self.flag = False
        self.asked = 0
        host = SimpleNamespace(
            server=SimpleNamespace(prompt_queue=self.queue), execution=SimpleNamespace(PromptExecutor=OwnExecutor),
            model_management=SimpleNamespace(processing_interrupted=self._look),
        )  # fmt: skip
        self.watch = QueueWatch(
            cast(ComfyHost, host), lambda *end: self.ended.append(end), lambda *seen: self.cached.append(seen), self.interrupted.append
        )

    def _look(self) -> bool:
        self.asked += 1
        return self.flag

    def begin(self, prompt_id: str, number: float = 0) -> None:
        """ComfyUI takes a prompt and clears its flag."""
        self.take(prompt_id, number)
        self.flag = False
        self.executor.add_message("execution_start", {"prompt_id": prompt_id}, broadcast=False)

    def take(self, prompt_id: str, number: float = 0) -> None:
        """ComfyUI takes a prompt, and has not cleared its flag yet."""
        with self.queue.mutex:
            self.queue.currently_running = {self.taken: entry(prompt_id, number)}
        self.taken += 1

    taken = 0

    def until_ended(self, count: int = 1) -> list[tuple[Place, str]]:
        deadline = time.monotonic() + 10
        while len(self.ended) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.ended


def entry(prompt_id: str, number: float = 0) -> tuple[Any, ...]:
    return (number, prompt_id, {}, {}, [])


def place(prompt_id: str, number: float = 0) -> Place:
    return number, prompt_id


def test_a_prompt_is_over_when_it_neither_waits_nor_runs_any_more() -> None:
    watched = Watched()
    watched.queue.queue.append(entry("a"))
    watched.watch.follow(place("a"))
    time.sleep(0.5)
    assert not watched.ended
    with watched.queue.mutex:
        watched.queue.currently_running[0] = watched.queue.queue.pop()
    time.sleep(0.5)
    assert not watched.ended
    with watched.queue.mutex:
        watched.queue.history["a"] = {"status": {"status_str": "success"}}
        watched.queue.currently_running.clear()
    assert watched.until_ended() == [(place("a"), "success")]


def test_what_failed_and_what_left_the_queue_are_told_apart() -> None:
    watched = Watched()
    watched.queue.history["failed"] = {"status": {"status_str": "error"}}
    watched.watch.follow(place("failed"))
    watched.watch.follow(place("deleted"))
    assert sorted(watched.until_ended(2)) == [(place("deleted"), "gone"), (place("failed"), "error")]


def test_an_interrupted_prompt_is_told_apart_from_one_that_failed() -> None:
    watched = Watched()
    for name, event in (("stopped", "execution_interrupted"), ("broken", "execution_error")):
        messages = [("execution_start", {}), (event, {"node_id": "9"})]
        watched.queue.history[name] = {"status": {"status_str": "error", "completed": False, "messages": messages}}
        watched.watch.follow(place(name))
    assert sorted(watched.until_ended(2)) == [(place("broken"), "error"), (place("stopped"), "interrupted")]


def test_a_listener_that_fails_does_not_end_the_watch() -> None:
    watched = Watched()
    tell, calls = watched.watch._on_end, []

    def fail_once(which: Place, ending: Any) -> None:
        calls.append(which)
        if len(calls) == 1:
            raise ValueError("no")
        tell(which, ending)

    watched.watch._on_end = fail_once
    watched.watch.follow(place("one"))
    deadline = time.monotonic() + 10
    while not calls and time.monotonic() < deadline:
        time.sleep(0.01)
    watched.watch.follow(place("two"))
    assert watched.until_ended() == [(place("two"), "gone")]


def test_cached_nodes_are_told_and_comfyui_hears_all_it_said() -> None:
    watched = Watched()
    watched.executor.add_message("execution_start", {"prompt_id": "a"}, broadcast=False)
    watched.executor.add_message("execution_cached", {"prompt_id": "a", "nodes": ["9", "3"]}, broadcast=False)
    assert watched.executor.said == ["execution_start", "execution_cached"]
    assert watched.cached == [("a", frozenset({"3", "9"}))]


def test_the_entry_of_a_prompt_is_found_where_it_waits_or_runs() -> None:
    watched = Watched()
    watched.queue.queue.append(entry("waits"))
    watched.queue.currently_running[3] = entry("runs")
    assert [watched.watch.entry(place(name)) for name in ("waits", "runs", "gone")] == [entry("waits"), entry("runs"), None]


def test_two_prompts_of_one_id_are_told_apart_and_the_history_of_the_first_says_nothing_of_the_second() -> None:
    watched = Watched()
    watched.queue.history["a"] = {"status": {"status_str": "success"}}
    watched.queue.queue.append(entry("a", 2))
    watched.watch.follow(place("a", 2))
    time.sleep(0.5)
    assert not watched.ended and watched.watch.entry(place("a", 1)) is None
    with watched.queue.mutex:
        watched.queue.queue.clear()
    assert watched.until_ended() == [(place("a", 2), "gone")]


def test_an_interrupt_is_told_while_the_prompt_still_runs_and_the_flag_is_left_to_comfyui() -> None:
    watched = Watched()
    watched.begin("a")
    watched.watch.follow(place("a"))
    time.sleep(0.5)
    assert not watched.interrupted
    watched.flag = True
    time.sleep(0.5)
    assert set(watched.interrupted) == {place("a")} and not watched.ended and watched.flag


def test_the_flag_of_a_prompt_that_ran_before_is_not_that_of_the_next_also_of_the_same_place() -> None:
    watched = Watched()
    watched.begin("a", 5)
    watched.flag = True  # nobody follows it
    time.sleep(0.5)
    watched.take("a", 5)
    watched.watch.follow(place("a", 5))
    time.sleep(0.5)
    assert not watched.interrupted and watched.asked == 0
    watched.begin("a", 5)
    time.sleep(0.5)
    assert not watched.interrupted and watched.asked
    watched.flag = True
    time.sleep(0.5)
    assert set(watched.interrupted) == {place("a", 5)}


def test_an_interrupt_concerns_what_runs_and_not_what_waits() -> None:
    watched = Watched()
    watched.queue.queue.append(entry("waits", 1))
    watched.watch.follow(place("waits", 1))
    watched.begin("without a job")
    watched.flag = True
    time.sleep(0.5)
    assert not watched.interrupted and watched.asked == 0


def test_what_runs_is_found_by_its_id_or_all_of_it() -> None:
    watched = Watched()
    watched.queue.queue.append(entry("waits", 1))
    watched.queue.currently_running = {3: entry("a", 2), 4: entry("b", 3)}
    asked = ("a", "waits", None)
    assert [watched.watch.running(prompt_id) for prompt_id in asked] == [[place("a", 2)], [], [place("a", 2), place("b", 3)]]
