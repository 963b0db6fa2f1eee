"""What ComfyUI says about the end of a prompt, as errors of this project; its words are the same in this process and over HTTP."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed_comfy.errors import NodeFailed

Messages = Sequence[tuple[str, dict[str, Any]]]
"""``PromptExecutor.status_messages``, and ``status.messages`` of a history entry: (event, facts) in order."""

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
