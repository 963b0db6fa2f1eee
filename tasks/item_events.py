"""How a ticket shows in Flower and other monitors of Celery's events: as the item that it turned out to be.

Celery announces a ticket before anybody knows what it will find.  After the claim ``task-started`` is sent again under the same task id,
with a name and arguments that say it; whoever reads events takes the last word.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.messages import ItemSpec, Prompt

NO_WORK = "no work"


class NodeTraceback(Exception):
    """The cause of an item's error, as far as it can be shown: where in the engine it was raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class TicketEvents:
    """The monitoring events of one ticket.

    Args:
        dispatcher: gives Celery's event dispatcher, or None while there is none.
        task_id: of the ticket.
    """

    def __init__(self, dispatcher: Callable[[], Any], task_id: str) -> None:
        self._dispatcher = dispatcher
        self._task_id = task_id

    def no_work(self) -> None:
        """The table had nothing for this worker."""
        self._send("task-started", name=NO_WORK, args="", kwargs="{}")

    def item_started(self, job_id: str, spec: ItemSpec, node_class: str) -> None:
        """The ticket became this item."""
        facts = {"job": job_id, "item": spec.index, "node_class": node_class, "seed": spec.seed}
        words = f"job {job_id}, item {spec.index}" + (f", seed {spec.seed}" if spec.seed else "")
        self._send("task-started", name=node_class, args=words, kwargs=repr(facts), **facts)

    def item_failed_for_now(self, error: DistributedComfyError) -> None:
        """The item failed here for a passing reason, and runs again; Celery's own event for that would hide the error in another one."""
        self._send("task-retried", exception=repr(error), traceback=node_traceback(error))

    def item_taken_away(self) -> None:
        """The item was cancelled, given back, or went to another worker."""
        self._send("task-revoked", terminated=True, signum=None, expired=False)

    def _send(self, kind: str, **facts: object) -> None:
        events = self._dispatcher()
        if events is not None and events.enabled:
            events.send(kind, uuid=self._task_id, **facts)


def node_traceback(error: DistributedComfyError) -> str:
    """Where in the engine it was raised; empty where that is not known."""
    trace = error.fields.get("traceback") or ""
    return "".join(map(str, trace)) if isinstance(trace, list) else str(trace)


def node_class_of(spec: ItemSpec, stage: Prompt, original: Prompt) -> str:
    """The node class that says best what an item does: the one that takes its seed, else its first output node.

    Args:
        spec: of the item.
        stage: the prompt it runs.
        original: the user's, where collectors still stand where the stage has internal nodes.
    """
    for node_id in (*(patch.node_id for patch in spec.patches), *spec.targets):
        node = original.get(node_id) or stage.get(node_id)
        if node is not None:
            return str(node["class_type"])
    return ""
