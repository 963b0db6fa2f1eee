"""Lets an item that runs out of memory in this ComfyUI be tried elsewhere, where ComfyUI itself would end the whole prompt.

The failed node then counts as run, with outputs that keep everything behind it from running; the node that ends the item runs all the
same, and gives the item back.
"""
from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from distributed_comfy.comfyui.host import ComfyHost

log = logging.getLogger(__name__)

_NEEDED = ("current_item", "caches", "dynprompt")
_OTHER_CACHE = "CacheEntry"
"""Of versions whose cache holds outputs in a form of its own."""


def watch_execution(host: ComfyHost, takes: Callable[[str, Exception], bool]) -> None:
    """Look at each failure of a node before ComfyUI does.

    Args:
        host: this ComfyUI.
        takes: given the node and its exception; true where the prompt is to go on without what the node gives.
    """
    execution, execute = host.execution, getattr(host.execution, "execute", None)
    signature = inspect.signature(execute or watch_execution)
    if execute is None or hasattr(execution, _OTHER_CACHE) or not all(name in signature.parameters for name in _NEEDED):
        log.info("this version of ComfyUI executes nodes otherwise: an item that runs out of memory in it fails its prompt")
        return

    @functools.wraps(execute)
    async def watched(*args: Any, **options: Any) -> Any:
        result = await execute(*args, **options)
        if result[0] != execution.ExecutionResult.FAILURE or not isinstance(result[-1], Exception):
            return result
        given = signature.bind(*args, **options).arguments
        node_id = str(given["current_item"])
        if not takes(node_id, result[-1]):
            return result
        node_class = host.nodes.NODE_CLASS_MAPPINGS[given["dynprompt"].get_node(node_id)["class_type"]]
        given["caches"].outputs.set(node_id, [[host.blocker()] for _ in node_class.RETURN_TYPES])
        return (execution.ExecutionResult.SUCCESS, None, None)

    execution.execute = watched
