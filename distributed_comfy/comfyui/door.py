"""What stands in ComfyUI's custom_nodes calls `load`: the node classes of the pack, and the pack itself beside them."""
from __future__ import annotations

import atexit
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from distributed_comfy.errors import DistributedComfyError

if TYPE_CHECKING:
    from distributed_comfy.comfyui.pack import Pack

log = logging.getLogger(__name__)

_ENGINE_PROCESS = "distributed_comfy.engine.process"
"""Only `engine.boot` loads it: a ComfyUI that has it is the engine of a worker, and never a master."""
_PACK = "distributed_comfy"
"""Attribute of ComfyUI's server that holds the pack of this process."""


class Door(NamedTuple):
    """What ComfyUI looks for in a node pack."""

    NODE_CLASS_MAPPINGS: dict[str, type]
    NODE_DISPLAY_NAME_MAPPINGS: dict[str, str]
    WEB_DIRECTORY: str | None
    pack: Pack | None = None


_NOTHING = Door({}, {}, None)


def load(folder: str) -> Door:
    """Make this ComfyUI a master, once.

    In the engine of a worker nothing happens, because the worker brings the classes itself.  What is wrong with us is one line in the
    log, and ComfyUI starts without us.

    Args:
        folder: the one in custom_nodes that calls this.
    """
    if _ENGINE_PROCESS in sys.modules:
        return _NOTHING
    from distributed_comfy.comfyui.logs import join_log
    from distributed_comfy.orchestrator.doctor.packages import refuse_foreign_packages
    from distributed_comfy.settings import read_settings

    try:
        settings = read_settings()
        join_log(settings)
        refuse_foreign_packages()
    except DistributedComfyError as error:
        log.error("%s; until then distributed-comfy stays out of this ComfyUI", error)
        return _NOTHING
    from distributed_comfy.comfyui.host import read_host
    from distributed_comfy.comfyui.pack import Pack

    host = read_host()
    loaded: Pack | None = getattr(host.server, _PACK, None)
    if loaded is not None:
        loaded.copies.add(Path(folder))
        return _NOTHING
    pack = Pack(settings, host)
    if not pack.open():
        return _NOTHING
    pack.copies.add(Path(folder))
    setattr(host.server, _PACK, pack)
    atexit.register(pack.end)
    return Door(pack.classes, pack.display_names, pack.web_directory, pack)
