"""Tells by the exception object whether a node ran out of memory, which ComfyUI itself only reports as text."""
from __future__ import annotations

from typing import Any

from distributed_comfy.engine.endings import node_failure
from distributed_comfy.errors import ItemError, OutOfMemory


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
            self.out_of_memory = is_out_of_memory(self._model_management, kwargs.get("ex", args[-1] if args else None))
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


def is_out_of_memory(model_management: Any, error: object) -> bool:
    """Whether ComfyUI, torch or Python says so with this exception."""
    judge = getattr(model_management, "is_oom", None)
    if judge is not None and judge(error):
        return True
    known = model_management.OOM_EXCEPTION
    # ComfyUI puts plain Exception there where torch has no such class.
    if known is not Exception and isinstance(error, known):
        return True
    # torch has no class for a CPU without memory, only this sentence of its allocator.
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
