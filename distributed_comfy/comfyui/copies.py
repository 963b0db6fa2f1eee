"""The folders in custom_nodes that bring us into one ComfyUI: one is enough, and where there are more, one line says which to remove."""
from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import distributed_comfy
from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.installing import is_repository

log = logging.getLogger(__name__)


class Copies:
    """One per pack; speaks once, when ComfyUI has loaded all node packs.

    Args:
        host: the ComfyUI of this process.
    """

    def __init__(self, host: ComfyHost) -> None:
        self._folders: list[Path] = []
        host.server.app.on_startup.append(self._tell)

    def add(self, folder: Path) -> None:
        """ComfyUI has loaded this one."""
        self._folders.append(folder)

    async def _tell(self, _application: Any) -> None:
        if told := advice(self._folders, Path(distributed_comfy.__file__).resolve().parent.parent):
            log.warning("%s", told)


def advice(folders: Sequence[Path], used: Path) -> str:
    """What to do about these folders; empty where nothing is wrong.

    Args:
        folders: in the order in which ComfyUI has loaded them.
        used: folder of the package that is imported, whoever asked for it.
    """
    unused = [folder for folder in folders if is_repository(folder) and folder.resolve() != used]
    version = f"version {distributed_comfy.__version__} in {used}"
    if len(folders) > 1:
        doors = [folder for folder in folders if not is_repository(folder)]
        surplus = (unused or doors or list(folders))[-1]
        return f"{' and '.join(map(str, folders))} both bring distributed-comfy, and one is enough: remove {surplus} ({version} is used)"
    if unused:  # what somebody changes there would have no effect
        return f'{unused[0]} is not used, but {version}; run: "{sys.executable}" -m pip install -e "{unused[0]}"'
    return ""
