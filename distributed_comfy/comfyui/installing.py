"""The door in ComfyUI's custom_nodes folder: written, looked at and removed; whatever is not ours there is left as it is.

The door is a folder with one file that loads the installed package by its absolute name: ComfyUI executes a pack under its path as module
name, so anything imported from within the folder would be a second copy.
"""
from __future__ import annotations

import os
import secrets
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distributed_comfy.errors import ComfyUINotFound, InstallRefused

DOOR_NAME = "distributed-comfy"
"""Folder in custom_nodes; no name that Python could import, so that it never hides the package itself."""
OTHER_PACK = "comfyui-distributed"
"""Usual folder of a pack that has the same node classes, in small letters."""

DoorState = Literal["absent", "current", "outdated", "repository", "foreign"]
Change = Literal["installed", "updated", "unchanged", "removed", "absent"]

_FILE = "__init__.py"
_MARK = '"""The door of distributed-comfy'
_DOOR = '''"""The door of distributed-comfy; `distributed-comfy comfyui install` wrote it, and `uninstall` instead removes it."""
import logging
import sys

SOURCE = {source!r}
NODE_CLASS_MAPPINGS = {{}}

try:
    from distributed_comfy.comfyui.door import load
except ImportError as error:
    remedy = f'"{{sys.executable}}" -m pip install "{{SOURCE}}"'
    logging.error("[distributed-comfy] %s cannot import it: %s; run: %s", sys.executable, error, remedy)
else:
    NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY, _PACK = load(__path__[0])
'''


@dataclass(frozen=True)
class Place:
    """A ComfyUI, as far as the door matters."""

    custom_nodes: Path
    tree: Path | None
    """Folder of its ``main.py``; None where only a base directory is known."""

    @property
    def door(self) -> Path:
        """The folder of the door."""
        return self.custom_nodes / DOOR_NAME


def find_place(folder: Path, tree: Path | None) -> Place:
    """The ComfyUI that somebody means by a folder.

    Args:
        folder: of its ``main.py``, that round a portable ComfyUI, its base directory or its custom_nodes.
        tree: the ComfyUI that is known otherwise, for a base directory that lies elsewhere.
    Raises:
        ComfyUINotFound: it is none of these.
    """
    folder = folder.expanduser().absolute()
    for candidate in (folder, folder / "ComfyUI"):
        if is_tree(candidate):
            return Place(candidate / "custom_nodes", candidate)
    custom_nodes = folder if folder.name == "custom_nodes" else folder / "custom_nodes"
    if not custom_nodes.is_dir():
        raise ComfyUINotFound(folder=str(folder))
    return Place(custom_nodes, custom_nodes.parent if is_tree(custom_nodes.parent) else tree)


def nearby_folder() -> Path | None:
    """The ComfyUI that somebody means who names none, as far as it shows; None where it does not.

    That of this interpreter, if it lies in a ComfyUI, in the base directory of one, or beside one (as in the portable build); else that of
    the current directory, if it is one, lies in one, or round one.
    """
    home, here = Path(sys.prefix), Path.cwd()
    if (sys.prefix != sys.base_prefix or home.name == "python_embeded") and (
        (home.parent / "custom_nodes").is_dir() or is_tree(home.parent) or is_tree(home.parent / "ComfyUI")
    ):
        return home.parent
    return next((folder for folder in (here, *here.parents, here / "ComfyUI") if is_tree(folder)), None)


def is_tree(folder: Path) -> bool:
    """Whether ComfyUI itself lies there."""
    return (folder / "main.py").is_file() and (folder / "nodes.py").is_file()


def door_state(place: Place, source: str) -> DoorState:
    """What stands where the door belongs.

    Args:
        place: see `find_place`.
        source: what pip installs the package from.
    """
    door, file = place.door, place.door / _FILE
    if not os.path.lexists(door):
        return "absent"
    if door.is_symlink() or not door.is_dir():
        return "repository" if is_repository(door) else "foreign"
    if is_repository(door):
        return "repository"
    names = {path.name for path in door.iterdir()} - {"__pycache__"}
    if not names:
        return "absent"
    if names != {_FILE} or file.is_symlink():
        return "foreign"
    text = file.read_text(encoding="utf-8", errors="replace")
    if not text.startswith(_MARK):
        return "foreign"
    return "current" if text == _DOOR.format(source=source) else "outdated"


def repositories(place: Place) -> list[Path]:
    """Where our repository lies in custom_nodes, under whatever name."""
    return [path for path in _packs(place) if is_repository(path)]


def other_packs(place: Place) -> list[Path]:
    """Packs beside ours that are known to have the same node classes."""
    return [path for path in _packs(place) if path.name.lower() == OTHER_PACK]


def install_door(place: Place, source: str) -> Change:
    """Write the door; twice is no error.

    Args:
        place: see `find_place`.
        source: what pip installs the package from.
    Raises:
        InstallRefused: something else stands there, or nothing can be written.
    """
    state = door_state(place, source)
    if state in ("current", "repository"):
        return "unchanged"
    if state == "foreign":
        raise InstallRefused(path=str(place.door), reason="it is there and not ours, so it stays; move it away or remove it")
    partial = place.door / f"{_FILE}.{secrets.token_hex(4)}"
    try:
        place.door.mkdir(parents=True, exist_ok=True)
        partial.write_text(_DOOR.format(source=source), encoding="utf-8")
        os.replace(partial, place.door / _FILE)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _refused(place, "written", error) from error
    return "updated" if state == "outdated" else "installed"


def remove_door(place: Place) -> Change:
    """Remove the door; where there is none that is no error.

    Raises:
        InstallRefused: what stands there is not the door, or cannot be removed.
    """
    state = door_state(place, "")
    if state == "absent":
        return "absent"
    if state == "repository":
        raise InstallRefused(path=str(place.door), reason="it is the repository itself; remove it by hand or with ComfyUI-Manager")
    if state == "foreign":
        raise InstallRefused(path=str(place.door), reason="it is not ours, so it stays; remove it by hand")
    try:
        (place.door / _FILE).unlink()
        shutil.rmtree(place.door / "__pycache__", ignore_errors=True)
        place.door.rmdir()
    except OSError as error:
        raise _refused(place, "removed", error) from error
    return "removed"


def _refused(place: Place, what: str, error: OSError) -> InstallRefused:
    return InstallRefused(path=str(place.door), reason=f"cannot be {what} ({error.strerror or error}); use the account that runs ComfyUI")


def _packs(place: Place) -> list[Path]:
    """Folders that ComfyUI loads."""
    if not place.custom_nodes.is_dir():
        return []
    return sorted(path for path in place.custom_nodes.iterdir() if path.is_dir() and not path.name.endswith(".disabled"))


def is_repository(folder: Path) -> bool:
    """Whether our repository lies there."""
    return (folder / "distributed_comfy" / "comfyui" / "door.py").is_file()
