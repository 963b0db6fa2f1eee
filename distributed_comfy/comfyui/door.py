"""What stands in ComfyUI's custom_nodes calls `load`: the node classes of the pack, and the pack itself beside them."""
from __future__ import annotations

import atexit
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import distributed_comfy
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
    _tell_other_copy(Path(folder))
    if getattr(host.server, _PACK, None) is not None:
        log.info("%s: distributed-comfy is loaded already, so this one stays out; remove one of the two", folder)
        return _NOTHING
    pack = Pack(settings, host)
    if not pack.open():
        return _NOTHING
    setattr(host.server, _PACK, pack)
    atexit.register(pack.end)
    return Door(pack.classes, pack.display_names, pack.web_directory, pack)


def _tell_other_copy(folder: Path) -> None:
    """Where the repository lies in custom_nodes and yet another copy is imported, changes in the repository have no effect."""
    used = Path(distributed_comfy.__file__).resolve().parent.parent
    if (folder / "distributed_comfy").is_dir() and folder.resolve() != used:
        remedy = f'"{sys.executable}" -m pip install -e "{folder}"'
        log.warning("%s is not used, but the copy of version %s in %s; run: %s", folder, distributed_comfy.__version__, used, remedy)
