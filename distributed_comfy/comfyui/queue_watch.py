"""What this ComfyUI does with prompts that have jobs: that they wait or run, that nodes were found in its cache, how they ended.

ComfyUI tells nobody when a prompt is deleted, cleared or interrupted, and tells of cached nodes only the client that queued the prompt;
so its queue and its interrupt flag are looked at a few times a second while there is a prompt to follow, and its executor is listened to.
"""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Literal

from distributed_comfy.comfyui.accepted import Place
from distributed_comfy.comfyui.host import ComfyHost

log = logging.getLogger(__name__)

LOOK_S = 0.2

Ending = Literal["success", "error", "interrupted", "gone"]
"""``gone``: it left the queue before it ran."""


class QueueWatch:
    """Follows prompts from acceptance to their end.

    Args:
        host: this ComfyUI.
        on_end: called once for each followed prompt, from a thread of its own.
        on_cached: called with a prompt and its nodes that ComfyUI takes from its cache, from ComfyUI's own thread: it must be quick.
        on_interrupt: called with a followed prompt, as long as it runs on although it is interrupted, from a thread of its own.
    """

    def __init__(
        self, host: ComfyHost, on_end: Callable[[Place, Ending], None], on_cached: Callable[[str, frozenset[str]], None],
        on_interrupt: Callable[[Place], None],
    ) -> None:  # fmt: skip
        self._host = host
        self._queue = host.server.prompt_queue
        self._on_end = on_end
        self._on_interrupt = on_interrupt
        self._begun: set[int] = set()
        """What runs and has told so, as the queue numbers it: before, ComfyUI's flag may be that of a prompt that ran earlier."""
        self._followed: dict[Place, Any] = {}
        """What is in the history under the id, as long as the prompt waits or runs: that of another prompt which has it."""
        self._changed = threading.Condition()
        _listen(host.execution.PromptExecutor, self._begins, on_cached)
        threading.Thread(target=self._work, name="distributed-comfy queue", daemon=True).start()

    def follow(self, place: Place) -> None:
        """Look after a prompt that has been accepted."""
        with self._changed:
            self._followed[place] = None
            self._changed.notify()

    def entry(self, place: Place) -> tuple[Any, ...] | None:
        """ComfyUI's own entry of a prompt that waits or runs: number, id, prompt, extra data, output nodes."""
        with self._queue.mutex:
            return next((entry for entry in self._entries() if _place(entry) == place), None)

    def running(self, prompt_id: str | None) -> list[Place]:
        """The prompts with this id that run (None: with any); one of them, unless some run elsewhere."""
        with self._queue.mutex:
            return [_place(entry) for entry in self._queue.currently_running.values() if prompt_id in (None, str(entry[1]))]

    def _entries(self) -> list[tuple[Any, ...]]:
        return [*self._queue.queue, *self._queue.currently_running.values()]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._followed)
                self._changed.wait(LOOK_S)
                followed = list(self._followed)
            for place in self._interrupted(followed):
                self._on_interrupt(place)
            for place, ending in self._ended(followed).items():
                with self._changed:
                    del self._followed[place]
                self._tell(place, ending)

    def _tell(self, place: Place, ending: Ending) -> None:
        try:
            self._on_end(place, ending)
        except Exception:  # the other prompts are to be followed all the same
            log.exception("prompt %s has ended (%s), and what follows from that failed", place[1], ending)

    def _begins(self, prompt_id: str) -> None:
        """ComfyUI has just cleared its flag for this prompt."""
        with self._queue.mutex:
            running = self._queue.currently_running
            self._begun.intersection_update(running)
            self._begun.update(item_id for item_id, entry in running.items() if str(entry[1]) == prompt_id)

    def _interrupted(self, followed: list[Place]) -> list[Place]:
        """Those for which ComfyUI's flag is set, which a node may not heed for long; the lock keeps the next prompt from running."""
        with self._queue.mutex:
            begun = [_place(entry) for item_id, entry in self._queue.currently_running.items() if item_id in self._begun]
            here = [place for place in begun if place in followed]
            return here if here and self._host.model_management.processing_interrupted() else []

    def _ended(self, followed: list[Place]) -> dict[Place, Ending]:
        ended: dict[Place, Ending] = {}
        with self._queue.mutex:
            here = {_place(entry) for entry in self._entries()}
            for place in followed:
                history = self._queue.history.get(place[1])
                if place in here:
                    self._followed[place] = history
                else:
                    ended[place] = _ending(None if history is self._followed[place] else history)
        return ended


def _place(entry: tuple[Any, ...]) -> Place:
    return entry[0], str(entry[1])


def _ending(history: dict[str, Any] | None) -> Ending:
    if history is None:
        return "gone"
    status = history.get("status") or {}
    if status.get("status_str") == "success":
        return "success"
    return "interrupted" if any(event[0] == "execution_interrupted" for event in status.get("messages") or ()) else "error"


def _listen(executor: Any, on_start: Callable[[str], None], on_cached: Callable[[str, frozenset[str]], None]) -> None:
    """Hear what ComfyUI's executors announce about a start and their cache, whoever the prompt's client is."""
    add_message = executor.add_message

    def add_and_tell(self: Any, event: str, facts: dict[str, Any], *args: Any, **options: Any) -> Any:
        if event == "execution_start":
            on_start(str(facts.get("prompt_id")))
        elif event == "execution_cached":
            on_cached(str(facts.get("prompt_id")), frozenset(map(str, facts.get("nodes", ()))))
        return add_message(self, event, facts, *args, **options)

    executor.add_message = add_and_tell
