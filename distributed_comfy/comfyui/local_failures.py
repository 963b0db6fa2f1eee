"""What becomes of a node that fails in an item of a job in this ComfyUI, and of what an item leaves in ComfyUI's memory.

Where it ran out of memory, the item is tried elsewhere, although ComfyUI itself would end the whole prompt: the node then counts as run,
with outputs that keep everything behind it from running; the node that ends the item runs all the same, and gives the item back.
Any other failure is the prompt's, as ever, and ComfyUI shows it at the node of the user's prompt that failed.

ComfyUI keeps what the nodes of an item gave until the node that added them is gone from its prompts.  Nobody asks for it once the turn of
the item is over: it is let go then, by what ComfyUI itself calls for a node that adds others in place of those it has added before.
"""
from __future__ import annotations

import functools
import inspect
import logging
from typing import Any, Protocol

from distributed_comfy.comfyui.host import ComfyHost

log = logging.getLogger(__name__)

_ID, _NODE = "current_item", "obj"
"""Names of arguments: of what executes a node, and of what runs its function."""
_CACHES = "caches"
"""The same: what ComfyUI remembers of nodes."""
_PLACE = "node_id"
"""Key of what ComfyUI's executor tells about a failure."""


class LocalItems(Protocol):
    """Whoever knows the items that run here."""

    def fails(self, node_id: str, error: Exception) -> bool:
        """Whether the prompt is to go on without what a failed node gives."""

    def users_node(self, node_id: str) -> str:
        """Where a node's failure is to be shown; the same id where ComfyUI is to decide."""

    def leftovers(self, node_id: str) -> tuple[str, ...] | None:
        """The nodes of an item that ended with this node; None where none did."""


def watch_execution(host: ComfyHost, items: LocalItems) -> None:
    """Look at how each node ends before ComfyUI does."""
    execution = host.execution
    functions = [getattr(execution, name, None) for name in ("execute", "get_output_data")]
    signatures = [inspect.signature(one or watch_execution) for one in functions]
    if not all(name in signature.parameters for name, signature in zip((_ID, _NODE), signatures, strict=True)):
        log.info("this version of ComfyUI executes nodes otherwise: an item that runs out of memory in it fails its prompt")
        return
    execute, (of_execute, of_node) = execution.execute, signatures

    async def blocked(*args: Any, **options: Any) -> Any:
        """In place of what runs a node: outputs, nothing for the page, no nodes to add, nothing under way."""
        node = of_node.bind(*args, **options).arguments[_NODE]
        return [[host.blocker()] for _ in node.RETURN_TYPES], {}, False, False

    @functools.wraps(execute)
    async def watched(*args: Any, **options: Any) -> Any:
        result = await execute(*args, **options)
        if result[0] == execution.ExecutionResult.PENDING:
            return result
        given = of_execute.bind(*args, **options).arguments
        node_id = str(given[_ID])
        if result[0] == execution.ExecutionResult.SUCCESS:
            made = items.leftovers(node_id)
            if made is not None:
                host.forget_progress((node_id, *made))
                await _let_go(given.get(_CACHES), node_id)
            return result
        if not isinstance(result[-1], Exception):
            return result
        if not items.fails(node_id, result[-1]):
            return _shown_at(items.users_node(node_id), node_id, result)
        # The executor itself keeps these outputs, in the form that its version's cache has; one node runs at a time.
        running, execution.get_output_data = execution.get_output_data, blocked
        try:
            return await execute(*args, **options)
        finally:
            execution.get_output_data = running

    execution.execute = watched


async def _let_go(caches: Any, node_id: str) -> None:
    """Forget what nodes gave that a node has added; what they have shown stays in the history."""
    for name in ("outputs", "objects"):
        add = getattr(getattr(caches, name, None), "ensure_subcache_for", None)
        if add is not None:
            (await add(node_id, ())).clean_unused()


def _shown_at(place: str, node_id: str, result: tuple[Any, ...]) -> tuple[Any, ...]:
    outcome, told, *rest = result
    return result if place == node_id or _PLACE not in told else (outcome, {**told, _PLACE: place}, *rest)
