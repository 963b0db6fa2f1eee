"""Puts files that workers made into this ComfyUI's folders, under its own counters, and names them so in what nodes show.

A worker's output folder is empty before each prompt, so its files are numbered from 1.  Here they get the numbers that ComfyUI would
have given them now, without gaps; a name is taken in one step, so nothing is ever written over.
"""
from __future__ import annotations

import os
import posixpath
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from distributed_comfy.collector.naming import highest_count, named_apart, safe_relative, take_name, writing
from distributed_comfy.comfyui.saves import SaveWatch
from distributed_comfy.errors import OutputUnwritable
from distributed_comfy.messages import FileRef

_COUNTED = re.compile(r"(?P<stem>.+)_(?P<count>\d{5,12})(?P<rest>(?!\d).*)", re.DOTALL)
"""What nodes call their files; a counter has five digits or more."""

JOURNAL = "partials"
"""File in a spool: a line for each file that is about to have its name, so that those of a process that was killed are found."""
_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.part")

Place = tuple[str, str]
"""``output`` or ``temp``, and the path in it with ``/``."""


@dataclass(frozen=True)
class MadeFile:
    """A file that a worker sent."""

    ref: FileRef
    path: Path
    """Where it lies now; it stays there."""


@dataclass(frozen=True)
class _Counter:
    """One row of numbers: the files of one prefix in one folder."""

    root: Path
    parent: PurePosixPath
    stem: str
    plain: bool
    """Whether ``_`` follows the number, as with ComfyUI's own nodes."""


@dataclass
class _Partial:
    made: MadeFile
    relative: PurePosixPath
    file: Path
    number: int = 0
    rest: str = ""


@dataclass
class FilePlacer:
    """Places the files of one prompt after the other, from any thread."""

    saves: SaveWatch
    folder_of: Callable[[str], Path]
    """ComfyUI's folder of this name; it may be changed while ComfyUI runs."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set it where nobody waits for files any more."""

    def place(self, files: Sequence[MadeFile], journal: Path | None = None) -> dict[Place, Path]:
        """Give every file its name; all of them, or none.

        Args:
            files: what was made.
            journal: see `JOURNAL`.
        Returns:
            What it was called on the worker -> where it is.
        Raises:
            OutputUnwritable: the disk is full, a folder may not be written, or a link leads out of it.
            RunInterrupted: `stop` was set.
        """
        placed: dict[Place, Path] = {}
        with ExitStack() as undo:
            undo.callback(_remove, placed)
            partials = [self._prepare(made, undo, journal) for made in files]
            for counter, row in _rows(partials, self.folder_of):
                for partial, path in self._number(counter, row) if counter else map(_keep_name, row):
                    placed[_place_of(partial.made.ref)] = path
            undo.pop_all()
        return placed

    def _prepare(self, made: MadeFile, undo: ExitStack, journal: Path | None) -> _Partial:
        """The file on the disk where it is to be, under a name that nobody looks for."""
        root, relative = self.folder_of(made.ref.folder), safe_relative(made.ref.name)
        folder = root / relative.parent
        partial = folder / f".{secrets.token_hex(8)}.part"
        undo.callback(partial.unlink, missing_ok=True)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not folder.resolve().is_relative_to(root.resolve()):
                raise OutputUnwritable(path=str(folder), reason="a link on the way leads out of the folder")
            if journal is not None:
                with journal.open("a", encoding="utf-8", errors="surrogateescape") as lines:
                    lines.write(f"{partial}\n")
            try:
                os.link(made.path, partial)
            except OSError:
                shutil.copyfile(made.path, partial)
        return _Partial(made, relative, partial)

    def _number(self, counter: _Counter, row: Sequence[_Partial]) -> Iterator[tuple[_Partial, Path]]:
        folder = counter.root / counter.parent
        with self.saves.alone(folder, counter.stem, self.stop), writing(folder):
            first = self._next(counter)
            for partial in row:
                path = _numbered(folder, counter, first, partial)
                while not take_name(partial.file, path):  # somebody else's: another process saves here too
                    first = max(first, self._next(counter) - partial.number) + 1
                    path = _numbered(folder, counter, first, partial)
                yield partial, path

    def _next(self, counter: _Counter) -> int:
        """The number that ComfyUI would give the next file."""
        prefix = counter.parent / counter.stem
        if counter.plain and "%" not in str(prefix):
            return int(self.saves.look(str(prefix), str(counter.root))[2])
        return highest_count(counter.root / counter.parent, f"{counter.stem}_") + 1


def is_partial(path: Path) -> bool:
    """Whether a file has not been given its name."""
    return _PARTIAL.fullmatch(path.name) is not None


def _rows(partials: Sequence[_Partial], folder_of: Callable[[str], Path]) -> Iterator[tuple[_Counter | None, list[_Partial]]]:
    """The files that count together, by number; those that have no counter come without."""
    rows: dict[_Counter, list[_Partial]] = {}
    for partial in partials:
        match = _COUNTED.fullmatch(partial.relative.name)
        stem, partial.number, partial.rest = (match["stem"], int(match["count"]), match["rest"]) if match else ("", 0, "")
        counter = _Counter(folder_of(partial.made.ref.folder), partial.relative.parent, stem, partial.rest.startswith("_"))
        rows.setdefault(counter, []).append(partial)
    for counter, row in rows.items():
        row.sort(key=lambda partial: partial.number)
        counts = sorted({partial.number for partial in row})
        yield counter if counter.stem and counts == list(range(1, len(counts) + 1)) else None, row


def _numbered(folder: Path, counter: _Counter, first: int, partial: _Partial) -> Path:
    return folder / f"{counter.stem}_{first + partial.number - 1:05}{partial.rest}"


def _keep_name(partial: _Partial) -> tuple[_Partial, Path]:
    wanted = partial.file.with_name(partial.relative.name)
    with writing(wanted):
        return partial, next(path for path in named_apart(wanted) if take_name(partial.file, path))


def _remove(placed: Mapping[Place, Path]) -> None:
    for path in placed.values():
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _place_of(ref: FileRef) -> Place:
    return ref.folder, ref.name


# -- what nodes show ----------------------------------------------------------------------------------------------------
def names_files(ui: Any) -> bool:
    """Whether a node's ui result names a file in one of ComfyUI's folders."""
    return isinstance(ui, dict) and any(_is_file(entry) for entries in ui.values() if isinstance(entries, list) for entry in entries)


def with_places(ui: Any, placed: Mapping[Place, Path], folder_of: Callable[[str], Path]) -> Any:
    """A node's ui result with the names that its files have here; the rest stays as it is."""
    if not isinstance(ui, dict):
        return ui

    def renamed(entries: Any) -> Any:
        if not isinstance(entries, list):
            return entries
        return [_renamed(entry, placed, folder_of) if _is_file(entry) else entry for entry in entries]

    return {name: renamed(entries) for name, entries in ui.items()}


def _is_file(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("filename"), str) and entry.get("type") in ("output", "temp")


def _renamed(entry: dict[str, Any], placed: Mapping[Place, Path], folder_of: Callable[[str], Path]) -> dict[str, Any]:
    folder = "temp" if entry["type"] == "temp" else "output"
    subfolder = str(entry.get("subfolder") or "").replace("\\", "/")  # a worker may run on Windows
    path = placed.get((folder, posixpath.normpath(posixpath.join(subfolder, entry["filename"].replace("\\", "/")))))
    if path is None:
        return entry
    here = path.parent.relative_to(folder_of(folder)).as_posix()
    renamed = {**entry, "filename": path.name, "subfolder": "" if here == "." else here}
    return {**renamed, "fullpath": str(path)} if "fullpath" in entry else renamed
