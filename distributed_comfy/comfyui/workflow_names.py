"""The names under which a user of ComfyUI has saved workflows: a workflow with its id goes in, the name of its file comes out."""
from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

_MOST_FILES = 2000
_HEAD_BYTES = 200
_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*"([0-9A-Za-z-]{8,64})"')
"""What the editor writes first into a file."""


def saved_name(user_folder: Path | None, workflow: Any) -> str:
    """What the tab of a workflow says in the editor; empty where it was not saved, or has no id, as those of older editors.

    Args:
        user_folder: in which ComfyUI keeps what the sender saves; None: that is not known.
        workflow: as the editor sent it; may be anything.
    """
    wanted = workflow.get("id") if isinstance(workflow, dict) else None
    if user_folder is None or not isinstance(wanted, str) or not wanted:
        return ""
    found = [path for path in islice(_files(user_folder), _MOST_FILES) if _id_in(path) == wanted]
    return max(found, key=_written_s).stem if found else ""  # a copy may have kept the id


def _files(user_folder: Path) -> Iterator[Path]:
    try:
        yield from user_folder.glob("workflows/**/*.json")
    except OSError:
        return


def _id_in(path: Path) -> str:
    try:
        with path.open("rb") as file:
            found = _ID.match(file.read(_HEAD_BYTES))
    except OSError:
        return ""
    return found[1].decode() if found else ""


def _written_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
