"""What stands in ComfyUI's custom_nodes calls `load`: the node classes of the pack, and the pack itself beside them."""
from __future__ import annotations

import atexit
import logging
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from distributed_comfy.comfyui.pack import Pack

log = logging.getLogger(__name__)

_ENGINE_PROCESS = "distributed_comfy.engine.process"
"""Only `engine.boot` loads it: a ComfyUI that has it is the engine of a worker, and never a master."""


class Door(NamedTuple):
    """What ComfyUI looks for in a node pack."""

    NODE_CLASS_MAPPINGS: dict[str, type]
    NODE_DISPLAY_NAME_MAPPINGS: dict[str, str]
    WEB_DIRECTORY: str | None
    pack: Pack | None = None


_NOTHING = Door({}, {}, None)


def load() -> Door:
    """Make this ComfyUI a master; in the engine of a worker nothing happens, because the worker brings the classes itself."""
    if _ENGINE_PROCESS in sys.modules:
        return _NOTHING
    from distributed_comfy.comfyui.host import read_host
    from distributed_comfy.comfyui.pack import Pack
    from distributed_comfy.settings import read_settings

    pack = Pack(read_settings(), read_host())
    pack.install_parts()
    pack.session.start()
    atexit.register(pack.session.end)
    return Door(pack.classes, pack.display_names, pack.web_directory, pack)
