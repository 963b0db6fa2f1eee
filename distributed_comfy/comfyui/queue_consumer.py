"""Another consumer of ComfyUI's own queue: it takes single prompts out, gives them back to their old places, or ends them.

All it does to the queue, ComfyUI's own consumer does as well, under the same lock; so /queue, deletes, counts and the history work as
they are.  It never waits at the queue's condition, which wakes one waiter per prompt: that must be ComfyUI's own.
"""
from __future__ import annotations

import copy
import heapq
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Item = tuple[Any, ...]
"""As ComfyUI queues a prompt: number, prompt id, prompt, extra_data, output nodes to run; newer versions add what must not be shown."""

_SENSITIVE = 5
"""Position of what must not be shown, in versions that keep it apart."""
_PARTS: dict[str, type | None] = {
    "mutex": None, "not_empty": None, "queue": list, "currently_running": dict, "task_counter": int, "server": None,
}  # fmt: skip


@dataclass(frozen=True)
class TakenPrompt:
    """A prompt that runs elsewhere, and that ComfyUI shows as running."""

    item: Item
    item_id: int
    """Under which ComfyUI knows it while it runs."""

    @property
    def prompt_id(self) -> str:
        """As its submitter knows it."""
        return str(self.item[1])

    @property
    def prompt(self) -> dict[str, Any]:
        """The graph; not to be changed."""
        return dict(self.item[2])

    @property
    def extra_data(self) -> dict[str, Any]:
        """It may hold credentials; not to be changed."""
        return dict(self.item[3])

    @property
    def client_id(self) -> str | None:
        """Who hears about it; None where nobody asked to."""
        return self.extra_data.get("client_id")

    @property
    def targets(self) -> tuple[str, ...]:
        """The output nodes to run."""
        return tuple(str(node_id) for node_id in self.item[4])


class QueueConsumer:
    """Takes prompts out of one queue; safe to use from several threads.

    Args:
        queue: ComfyUI's ``PromptQueue``; nothing else is to be called while `why_unfit` finds something wrong with it.
    """

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._ours: set[int] = set()

    def why_unfit(self) -> str:
        """See the function; a pack may put something else in the place of a method at any time."""
        return why_unfit(self._queue)

    def waiting(self) -> tuple[Item, ...]:
        """What the master does not take next by itself, in ComfyUI's order: an idle master is about to take the first."""
        with self._queue.mutex:
            items = sorted(self._queue.queue, key=_place)
            return tuple(items if self._master_is_busy() else items[1:])

    def entries(self) -> tuple[Item, ...]:
        """All that waits, in no order."""
        with self._queue.mutex:
            return tuple(self._queue.queue)

    def is_queued(self) -> bool:
        """Whether anything waits at all; cheap."""
        return bool(self._queue.queue)

    def take(self, item: Item) -> TakenPrompt | None:
        """Take one of `waiting`, unless it was deleted or taken meanwhile, or has become the master's next."""
        queue = self._queue
        with queue.mutex:
            position = next((number for number, waiting in enumerate(queue.queue) if waiting is item), None)
            if position is None or (not self._master_is_busy() and min(queue.queue, key=_place) is item):
                return None
            queue.queue.pop(position)
            heapq.heapify(queue.queue)
            item_id = queue.task_counter
            queue.task_counter += 1
            queue.currently_running[item_id] = copy.deepcopy(item)
            self._ours.add(item_id)
            queue.server.queue_updated()
        return TakenPrompt(item, item_id)

    def give_back(self, taken: TakenPrompt) -> None:
        """Queue a prompt again, where it was; it is the same to ComfyUI as if it had never been taken."""
        queue = self._queue
        with queue.mutex:
            self._forget(taken)
            queue.currently_running.pop(taken.item_id, None)
            queue.put(taken.item)

    def end(self, taken: TakenPrompt, history: dict[str, Any], status: str, messages: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """A prompt is over; ComfyUI enters it in its history.

        Args:
            taken: the prompt.
            history: ``outputs`` and ``meta``.
            status: ``success`` or ``error``.
            messages: as ComfyUI's executor notes them.
        """
        queue = self._queue
        extra = {}
        if len(taken.item) > _SENSITIVE and "process_item" in inspect.signature(queue.task_done).parameters:
            extra["process_item"] = _without_sensitive
        with queue.mutex:
            self._forget(taken)
            ended = type(queue).ExecutionStatus(status_str=status, completed=status == "success", messages=list(messages))
            queue.task_done(taken.item_id, history, status=ended, **extra)

    def end_here(self, prompt_id: str, interrupt: Callable[[], Any]) -> None:
        """Call what interrupts this ComfyUI, where it runs a prompt of this id itself, and not the next one meanwhile."""
        with self._queue.mutex:
            running = self._queue.currently_running
            if any(str(item[1]) == prompt_id for item_id, item in running.items() if item_id not in self._ours):
                interrupt()

    def _master_is_busy(self) -> bool:
        return any(item_id not in self._ours for item_id in self._queue.currently_running)

    def _forget(self, taken: TakenPrompt) -> None:
        self._ours.discard(taken.item_id)


def why_unfit(queue: Any, module: str = "execution") -> str:
    """Why prompts cannot be taken out of this queue; empty where they can.

    Args:
        queue: the server's ``prompt_queue``.
        module: where ComfyUI's own class is; a pack may have put another in its place.
    """
    for name, kind in _PARTS.items():
        if not hasattr(queue, name) or (kind is not None and not isinstance(getattr(queue, name), kind)):
            return f"this ComfyUI's queue has no {name} as it is known here"
    for name in ("get", "put", "task_done"):
        if not callable(getattr(queue, name, None)):
            return f"this ComfyUI's queue has no method {name}"
    if not callable(getattr(queue.server, "queue_updated", None)) or not hasattr(type(queue), "ExecutionStatus"):
        return "this ComfyUI's queue tells its server in another way than is known here"
    for name in ("get", "put"):
        if _origin(getattr(queue, name)) != module:
            return f"a node pack has replaced the queue's {name} ({_origin(getattr(queue, name))})"
    return ""


def _origin(method: Callable[..., Any]) -> str:
    return str(getattr(method, "__module__", ""))


def _place(item: Item) -> tuple[Any, str]:
    return item[0], str(item[1])


def _without_sensitive(item: Item) -> Item:
    return item[:_SENSITIVE] + item[_SENSITIVE + 1 :]
