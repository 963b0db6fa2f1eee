"""What ComfyUI says about a prompt that did not end well, as errors of this project."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed_comfy.errors import ItemError, NodeFailed, OutOfMemory

Messages = Sequence[tuple[str, dict[str, Any]]]
"""``PromptExecutor.status_messages``: (event, facts) in order."""

SUCCESS, INTERRUPTED = "execution_success", "execution_interrupted"
ENDS = (SUCCESS, "execution_error", INTERRUPTED)


def ending(messages: Messages) -> tuple[str, dict[str, Any]]:
    """The last of ``execution_success``, ``execution_error``, ``execution_interrupted`` and its facts.

    ``PromptExecutor.success`` is not to be trusted: nothing sets it back after a failure but the first node of the next prompt.
    """
    ends = [(event, facts) for event, facts in messages if event in ENDS]
    return ends[-1] if ends else ("", {})


def cached_nodes(messages: Messages) -> frozenset[str]:
    """Nodes whose result came from the cache."""
    return frozenset(str(node) for event, facts in messages if event == "execution_cached" for node in facts.get("nodes", ()))


def node_failure(event: str, facts: dict[str, Any]) -> NodeFailed:
    """The error for an ending that is the prompt's own fault."""
    if event == INTERRUPTED:  # nobody asked for it, so a node did
        facts = {"exception_type": "InterruptProcessingException", "exception_message": "the node stopped the prompt", **facts}
    return NodeFailed(
        node_id=str(facts.get("node_id", "")),
        class_type=str(facts.get("node_type", "")),
        exception_type=str(facts.get("exception_type", "")),
        exception_message=str(facts.get("exception_message", "")).strip(),
        traceback="".join(facts.get("traceback", ())),
    )


class FailureWatch:
    """Sees the exception objects of nodes, which ComfyUI itself only reports as text, to tell memory exhaustion from other errors."""

    def __init__(self, model_management: Any) -> None:
        self._model_management = model_management
        self.out_of_memory = False

    def attach(self, executor: Any) -> None:
        """Look at what the executor handles from now on."""
        handle = executor.handle_execution_error

        def watched(*args: Any, **kwargs: Any) -> Any:
            # Only the verdict is kept: the exception's frames hold tensors, which could not be freed.
            self.out_of_memory = self._is_out_of_memory(kwargs.get("ex", args[-1] if args else None))
            return handle(*args, **kwargs)

        executor.handle_execution_error = watched

    def begin(self) -> None:
        """A run starts."""
        self.out_of_memory = False

    def failure(self, event: str, facts: dict[str, Any], device: str) -> ItemError:
        """The error for an ending other than success."""
        failed = node_failure(event, facts)
        if not self.out_of_memory:
            return failed
        return OutOfMemory(device=device, **failed.fields)

    def _is_out_of_memory(self, error: object) -> bool:
        judge = getattr(self._model_management, "is_oom", None)
        if judge is not None and judge(error):
            return True
        known = self._model_management.OOM_EXCEPTION
        # ComfyUI puts plain Exception there where torch has no such class.
        if known is not Exception and isinstance(error, known):
            return True
        # torch has no class for a CPU without memory, only this sentence of its allocator.
        return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
