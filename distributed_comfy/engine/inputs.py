"""Makes an item's prompt ready for the engine: input files where its loaders look, and the claim in sinks and sources."""
from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from distributed_comfy.errors import FileUnreadable
from distributed_comfy.messages import InputFile, Prompt, RunRequest
from distributed_comfy.transport.files import InputCache
from distributed_comfy.workflow.classes import CLAIM_INPUT, KEPT_MARK, SINK_CLASS, SOURCE_CLASS

PLACED_PREFIX = "dc-"
"""Every file that is placed in an input folder begins so."""


def place_inputs(request: RunRequest, cache: InputCache, input_folder: Path) -> Prompt:
    """Put an item's input files into the engine's input folder and name them in the prompt.

    A file's name there is that of its content and its own, so it stays the same from item to item (the engine's caches hold) and no two
    files clash.  They lie on the top level, for that is what ComfyUI's loaders list.  Placed files of other items are removed.

    Args:
        request: its prompt is not changed.
        cache: holds the contents of ``request.input_files`` already.
        input_folder: the engine's own; files that we did not place stay.
    Returns:
        The prompt with the placed names and with the claim id in each sink and source, but for sources that planning gave another
        text (`KEPT_MARK`): their value is the same in all items with the same text, so they may stay in the engine's cache.
    Raises:
        FileUnreadable: a content is not in the cache, or cannot be placed.
    """
    names = {placed_name(entry): entry for entry in request.input_files}
    for leftover in input_folder.glob(f"{PLACED_PREFIX}*"):
        if leftover.name not in names:
            leftover.unlink(missing_ok=True)
    for name, entry in names.items():
        _place(cache.path_of(entry.file), input_folder / name)
    changes: dict[str, dict[str, Any]] = {}
    for entry in request.input_files:
        changes.setdefault(entry.node_id, {})[entry.input] = placed_name(entry)
    for node_id, node in request.prompt.items():
        if node["class_type"] in (SINK_CLASS, SOURCE_CLASS) and not str(node["inputs"].get(CLAIM_INPUT)).startswith(KEPT_MARK):
            changes.setdefault(node_id, {})[CLAIM_INPUT] = request.claim_id
    return {
        node_id: {**node, "inputs": {**node["inputs"], **changes[node_id]}} if node_id in changes else node
        for node_id, node in request.prompt.items()
    }


def placed_name(entry: InputFile) -> str:
    """The name of an input file in an engine's input folder."""
    own = re.sub(r"[^\w.-]+", "_", entry.file.name.rsplit("/", 1)[-1])[-80:]
    return f"{PLACED_PREFIX}{entry.file.sha256[:16]}-{own}"


def _place(content: Path, target: Path) -> None:
    """Link, or copy where links do not work (another disk, Windows without the right); appears whole."""
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.part")
    try:
        partial.unlink(missing_ok=True)
        try:
            os.link(content, partial)
        except OSError:
            shutil.copyfile(content, partial)
        os.replace(partial, target)
    except OSError as error:
        raise FileUnreadable(path=str(content), reason=error.strerror or str(error)) from error
