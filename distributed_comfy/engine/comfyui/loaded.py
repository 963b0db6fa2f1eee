"""What a running tree has loaded: custom node packs with their versions, and models."""
from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed_comfy.engine.comfyui.launch import tree_commit
from distributed_comfy.state.status import LoadedModel

log = logging.getLogger(__name__)

_OWN_PARTS = ("comfy_extras", "comfy_api_nodes")
"""Folders of ComfyUI whose modules it loads as it loads packs."""


def pack_versions(nodes: Any) -> dict[str, str]:
    """Name of each custom node pack -> first digits of its commit, else the version in its ``pyproject.toml``, else empty.

    Args:
        nodes: ComfyUI's module; it notes where each pack came from.
    """
    places = {Path(name).name: Path(place) for name, place in getattr(nodes, "LOADED_MODULE_DIRS", {}).items()}
    packs = {name: place for name, place in sorted(places.items()) if place.name not in _OWN_PARTS}
    # Of a pack that is a single file ComfyUI notes the folder around it.
    return {name: _version(place) if place.name == name else "" for name, place in packs.items()}


def _version(pack: Path) -> str:
    try:
        return tree_commit(pack) or _declared_version(pack / "pyproject.toml")
    except (OSError, UnicodeDecodeError) as error:
        log.info("the version of node pack %s cannot be read: %s", pack.name, error)
        return ""


def _declared_version(project: Path) -> str:
    """``version`` of the section ``[project]``; ComfyUI's interpreter may be older than Python's own parser of TOML."""
    if not project.is_file():
        return ""
    section = re.search(r"^\[project\]\s*$(.*?)(?=^\[|\Z)", project.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = re.search(r"^version\s*=\s*[\"']([^\"']+)[\"']", section[1], re.MULTILINE) if section else None
    return found[1] if found else ""


def loaded_models(model_management: Any) -> tuple[LoadedModel, ...]:
    """The models that ComfyUI keeps loaded, in its order; called while another thread may load and unload them."""
    try:
        return tuple(_told(model_management.current_loaded_models))
    # One of them went at this moment, or a pack put something else there.
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError, ReferenceError) as error:
        log.debug("the loaded models cannot be told: %s", error)
        return ()


def _told(loaded: Any) -> Iterator[LoadedModel]:
    for entry in list(loaded):
        patcher = entry.model
        if patcher is not None:
            yield LoadedModel(type(patcher.model).__name__, int(patcher.model_size()), int(patcher.loaded_size()))
