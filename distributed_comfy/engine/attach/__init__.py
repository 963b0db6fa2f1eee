"""The engine that drives a running ComfyUI over HTTP; `create_engine` is its door, and nothing here is imported by a consumer."""
from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from distributed_comfy.engine.options import EngineOptions, NodeProvider
from distributed_comfy.errors import EngineStartFailed

if TYPE_CHECKING:
    from distributed_comfy.engine.base import Engine

_NEEDED = {"aiohttp": "aiohttp", "PIL": "Pillow", "numpy": "numpy"}
"""Module -> what pip calls it."""


def create_engine(options: EngineOptions, context: Any, provide_nodes: NodeProvider) -> Engine:
    """See `engine.options.EngineFactory`; the node classes of this project stay here, for they cannot be sent."""
    for module, package in _NEEDED.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            remedy = f"{sys.executable} -m pip install {package}"
            raise EngineStartFailed(reason=f"engine attach needs {package} ({error}); {remedy}") from error
    from distributed_comfy.engine.attach.engine import AttachEngine

    return AttachEngine(options, context)
