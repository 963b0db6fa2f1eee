"""A worker's own folders, and the files in them that a run has left there."""
from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from distributed_comfy.engine.base import OutputFile
from distributed_comfy.errors import FileUnreadable


@dataclass(frozen=True)
class WorkFolders:
    """Folders of one worker; no two workers share them, because ComfyUI empties ``temp`` at start and counts files in ``output``."""

    root: Path

    @property
    def input(self) -> Path:
        """Input files, placed by `engine.inputs`."""
        return self.root / "input"

    @property
    def output(self) -> Path:
        """What SaveImage and its like write."""
        return self.root / "output"

    @property
    def temp(self) -> Path:
        """What PreviewImage and its like write."""
        return self.root / "temp"

    @property
    def outgoing(self) -> Path:
        """Files of finished runs on their way to the blob store, one folder per claim."""
        return self.root / "outgoing"

    def create(self) -> WorkFolders:
        """Make all folders, empty but for ``input``, whose files are kept by content."""
        shutil.rmtree(self.outgoing, ignore_errors=True)
        for folder in (self.input, self.outgoing):
            folder.mkdir(parents=True, exist_ok=True)
        self.empty()
        return self

    def empty(self) -> None:
        """Drop what a failed run left in ``output`` and ``temp``; a finished run's files are in ``outgoing``."""
        self.empty_output()
        _empty(self.temp)

    def empty_output(self) -> None:
        """Drop what no node named, so that whatever lies in ``output`` after a run is of that run."""
        _empty(self.output)

    def folder(self, kind: Literal["output", "temp"]) -> Path:
        """The folder that ComfyUI calls by this type."""
        return self.output if kind == "output" else self.temp


def _empty(folder: Path) -> None:
    if not _is_empty(folder):  # removing and making a folder takes longer than a small item
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)


def _is_empty(folder: Path) -> bool:
    """Whether it is there with nothing in it."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return False


def discard_outgoing(root: Path, claim_id: str) -> None:
    """Delete the files of a claim that has been shipped, or never will be."""
    shutil.rmtree(WorkFolders(root).outgoing / claim_id, ignore_errors=True)


def written_files(outputs: dict[str, Any], folders: WorkFolders) -> list[OutputFile]:
    """The files that nodes name in their ui results.

    Args:
        outputs: node id -> ui dict; an entry ``{"filename", "subfolder", "type"}`` in any of its lists is a file.
        folders: where ``output`` and ``temp`` are.
    Returns:
        Each file once, in the order of the results; files outside the worker's folders are left out.
    """
    found: dict[tuple[str, str], OutputFile] = {}
    for node_id, ui in outputs.items():
        for entry in _file_entries(ui):
            folder: Literal["output", "temp"] = "temp" if entry["type"] == "temp" else "output"
            name = os.path.normpath(os.path.join(str(entry.get("subfolder") or ""), entry["filename"])).replace(os.sep, "/")
            if not name.startswith(("../", "/")):
                found.setdefault((folder, name), OutputFile(node_id, folders.folder(folder) / name, name, folder))
    return list(found.values())


def _file_entries(ui: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(ui, dict):
        return
    for entries in ui.values():
        for entry in entries if isinstance(entries, (list, tuple)) else ():
            if isinstance(entry, dict) and isinstance(entry.get("filename"), str) and entry.get("type") in ("output", "temp"):
                yield entry


def set_aside(files: list[OutputFile], folder: Path) -> list[OutputFile]:
    """Move a run's files into ``folder``, so that the next run starts with empty folders and cannot touch them.

    Raises:
        FileUnreadable: a node named a file that it did not write.
    """
    moved = []
    for number, file in enumerate(files):
        target = folder / str(number) / file.path.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file.path, target)
        except OSError as error:
            raise FileUnreadable(path=str(file.path), reason=f"{error.strerror or error} (node {file.node_id} named it)") from error
        moved.append(replace(file, path=target))
    return moved
