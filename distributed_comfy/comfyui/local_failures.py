"""What becomes of a node that fails in an item of a job in this ComfyUI.

Where it ran out of memory, the item is tried elsewhere, although ComfyUI itself would end the whole prompt: the node then counts as run,
with outputs that keep everything behind it from running; the node that ends the item runs all the same, and gives the item back.
Any other failure is the prompt's, as ever, and ComfyUI shows it at the node of the user's prompt that failed.
"""
from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from distributed_comfy.comfyui.host import ComfyHost

log = logging.getLogger(__name__)

_ID, _NODE = "current_item", "obj"
"""Names of arguments: of what executes a node, and of what runs its function."""
_PLACE = "node_id"
"""Key of what ComfyUI's executor tells about a failure."""


def watch_execution(host: ComfyHost, takes: Callable[[str, Exception], bool], users_node: Callable[[str], str]) -> None:
    """Look at each failure of a node before ComfyUI does.

    Args:
        host: this ComfyUI.
        takes: given the node and its exception; true where the prompt is to go on without what the node gives.
        users_node: given a node, where its failure is to be shown; the same id where ComfyUI is to decide.
    """
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
        if result[0] != execution.ExecutionResult.FAILURE or not isinstance(result[-1], Exception):
            return result
        node_id = str(of_execute.bind(*args, **options).arguments[_ID])
        if not takes(node_id, result[-1]):
            return _shown_at(users_node(node_id), node_id, result)
        # The executor itself keeps these outputs, in the form that its version's cache has; one node runs at a time.
        running, execution.get_output_data = execution.get_output_data, blocked
        try:
            return await execute(*args, **options)
        finally:
            execution.get_output_data = running

    execution.execute = watched


def _shown_at(place: str, node_id: str, result: tuple[Any, ...]) -> tuple[Any, ...]:
    outcome, told, *rest = result
    return result if place == node_id or _PLACE not in told else (outcome, {**told, _PLACE: place}, *rest)
