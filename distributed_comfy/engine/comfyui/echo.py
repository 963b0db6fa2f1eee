"""What of ComfyUI's messages is passed on, for a submitter that shows them as its own."""
from __future__ import annotations

import threading
import time
from typing import Any

from distributed_comfy.engine.base import Sink
from distributed_comfy.errors import ItemError
from distributed_comfy.messages import RunHistory

ECHOED = frozenset({"execution_cached", "executing", "executed", "progress", "progress_state"})
"""ComfyUI's messages that say how a prompt gets on; others come from node packs, for a browser page that this worker does not have."""
STEP_INTERVAL_S = 0.05
"""Shortest time between two messages that differ in steps alone."""

_STEPS = frozenset({"progress", "progress_state"})


class Echo:
    """Passes messages of one run on; steps only now and then, but the first and the last of each node always."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._due = dict.fromkeys(_STEPS, 0.0)
        self._shown: dict[str, Any] = {}

    def receive(self, event: str, data: dict[str, Any]) -> None:
        """One message, from any thread."""
        blocked = event == "execution_error" and data.get("exception_type") == "ExecutionBlocked"  # which ends nothing
        if blocked or (event in ECHOED and (event not in _STEPS or self._is_due(event, data))):
            self._sink.said(event, data)

    def _is_due(self, event: str, data: dict[str, Any]) -> bool:
        now, shown = time.monotonic(), _without_steps(event, data)
        with self._lock:
            if shown == self._shown.get(event) and now < self._due[event]:
                return False
            self._shown[event], self._due[event] = shown, now + STEP_INTERVAL_S
        return True


def _without_steps(event: str, data: dict[str, Any]) -> Any:
    """What two messages have in common that differ in steps alone."""
    if event == "progress":
        return data.get("node"), data.get("value") == data.get("max")
    return {node_id: (state.get("state"), state.get("value") == state.get("max")) for node_id, state in data.get("nodes", {}).items()}


def history_of(executor: Any) -> RunHistory:
    """What ComfyUI's executor notes of the run that has just ended."""
    cached = (str(node) for event, facts in executor.status_messages if event == "execution_cached" for node in facts.get("nodes", ()))
    return RunHistory(tuple(cached), dict(executor.history_result.get("meta", {})))


def with_words(error: ItemError, event: str, facts: dict[str, Any]) -> ItemError:
    """The same error with ComfyUI's own message about it in the field ``said``, as it would stand in its history."""
    said = {name: value for name, value in facts.items() if name not in ("prompt_id", "timestamp")}
    return type(error)(**error.fields, said={"event": event, "facts": said})
