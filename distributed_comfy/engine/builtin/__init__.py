"""The built-in engine; `create_engine` is its door, and nothing here is imported by a consumer."""
from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from distributed_comfy.engine.options import EngineOptions, NodeProvider
from distributed_comfy.errors import EngineStartFailed

if TYPE_CHECKING:
    from distributed_comfy.engine.base import Engine

_NEEDED = {"torch": "torch", "PIL": "Pillow", "numpy": "numpy"}
"""Module -> what pip calls it."""


def create_engine(options: EngineOptions, context: Any, provide_nodes: NodeProvider) -> Engine:
    """See `engine.options.EngineFactory`."""
    for module, package in _NEEDED.items():
        try:
            _find(module)
        except ImportError as error:
            remedy = f"{sys.executable} -m pip install {package}"
            raise EngineStartFailed(reason=f"the built-in engine needs {package} ({error}); {remedy}") from error
    from distributed_comfy.engine.builtin.engine import BuiltinEngine

    return BuiltinEngine(options, context, provide_nodes)


def _find(module: str) -> None:
    """Fail as an import would where there is no such module; torch takes too long to import it before it is needed."""
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
