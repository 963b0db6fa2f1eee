"""File names for what a job leaves in a folder: safe, never taken twice, counted on as ComfyUI counts."""
from __future__ import annotations

import errno
import itertools
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from distributed_comfy.errors import OutputUnwritable

_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')
_COUNTED = re.compile(r"(?P<stem>.*_)(?P<count>\d{3,12})(?P<tail>_?)")
_PLACEHOLDER = re.compile("%(year|month|day|hour|minute|second|width|height)%")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
PART_BYTES = 200
"""Longest part of a path, leaving room for a counter below the usual 255."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating system error on writing ``path`` into `OutputUnwritable`."""
    try:
        yield
    except OSError as error:
        raise OutputUnwritable(path=str(path), reason=_reason(error)) from error


def safe_relative(name: str) -> PurePosixPath:
    """``name`` as a path that stays below its folder on every system.

    Worker and graph choose this name, so ``..``, roots, drives, device names and control characters are taken out
    rather than trusted; ordinary names stay as they are.
    """
    parts = [_safe_part(part) for part in re.split(r"[/\\]", name)]
    return PurePosixPath(*([part for part in parts if part] or ["unnamed"]))


def named_apart(path: Path) -> Iterator[Path]:
    """The path, then the same with ``-1``, ``-2``... before its ending."""
    yield path
    for number in itertools.count(1):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def filled_prefix(prefix: str, width: int = 0, height: int = 0) -> str:
    """A prefix as ComfyUI fills it in: ``%year%``, ``%month%``, ``%day%``, ``%hour%``, ``%minute%``, ``%second%`` by this host's clock,
    ``%width%`` and ``%height%``; below its folder, with ``/``.
    """
    now = time.localtime()
    values = {
        "year": f"{now.tm_year}", "month": f"{now.tm_mon:02}", "day": f"{now.tm_mday:02}", "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}", "second": f"{now.tm_sec:02}", "width": f"{width}", "height": f"{height}",
    }  # fmt: skip
    return safe_relative(_PLACEHOLDER.sub(lambda found: values[found[1]], prefix)).as_posix()


class FolderNames:
    """Gives names in one folder to several threads; remembers how far each counter went, so a large folder is listed once.

    Args:
        folder: where the files go; made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._counts: dict[tuple[Path, str], int] = {}
        self._lock = threading.Lock()

    def put(self, file: Path, relative: PurePosixPath, note: Callable[[Path], None] = lambda path: None) -> Path:
        """Move a finished file to this name, or to the next free one, and return its path.

        ``a_00001_.png`` is counted on as ComfyUI counts; another name gets ``-1``, ``-2``...

        Args:
            file: on the same disk; it is gone afterwards.
            relative: the name that is wanted.
            note: told of each path before it is tried.
        Raises:
            OutputUnwritable: the folder is full, may not be written, or a link in it leads outside.
        """
        wanted = self.folder / relative
        with self._lock, writing(wanted):
            self._make_parent(wanted.parent)
            return _first_free(file, self._candidates(wanted), note)

    def put_next(self, file: Path, prefix: str, suffix: str, note: Callable[[Path], None] = lambda path: None) -> Path:
        """Move a finished file to the next ``<prefix>_00001_<suffix>`` of ComfyUI's count, as `put` does."""
        wanted = self.folder / f"{prefix}_00000_{suffix}"
        with self._lock, writing(wanted):
            self._make_parent(wanted.parent)
            return _first_free(file, self._counted(wanted), note)

    def _make_parent(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        if not parent.resolve().is_relative_to(self.folder.resolve()):
            raise OutputUnwritable(path=str(parent), reason="a link on the way leads out of the folder")

    def _candidates(self, wanted: Path) -> Iterator[Path]:
        if not _COUNTED.fullmatch(wanted.stem):
            yield from named_apart(wanted)
        yield wanted
        yield from self._counted(wanted)

    def _counted(self, wanted: Path) -> Iterator[Path]:
        match = _COUNTED.fullmatch(wanted.stem)
        assert match is not None, wanted
        key = (wanted.parent, match["stem"].lower())
        if key not in self._counts:
            self._counts[key] = highest_count(wanted.parent, match["stem"])
        while True:
            self._counts[key] = max(self._counts[key], int(match["count"])) + 1
            yield wanted.with_name(f"{match['stem']}{self._counts[key]:0{len(match['count'])}}{match['tail']}{wanted.suffix}")


def _first_free(file: Path, candidates: Iterator[Path], note: Callable[[Path], None]) -> Path:
    for path in candidates:
        note(path)
        if take_name(file, path):
            return path
    raise AssertionError("there is always a higher number")


def take_name(file: Path, path: Path) -> bool:
    """Give a file its name unless that is taken, in one step, so that a crash never leaves a name without a file.

    Returns:
        False where the name is taken.
    Raises:
        OSError: the folder may not be written, or its disk is full.
    """
    try:
        if os.name == "nt":
            os.rename(file, path)  # there it refuses a name that is taken
        else:
            os.link(file, path)
            file.unlink()
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno == errno.EXDEV:
            return _take_from_afar(file, path)
        if error.errno not in _NO_LINKS:
            raise
        return _take_in_two_steps(file, path)
    return True


def _take_from_afar(file: Path, path: Path) -> bool:
    """For a file on another disk: a copy that nobody looks for takes the name."""
    copy = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        shutil.copy2(file, copy)
        taken = take_name(copy, path)
    finally:
        copy.unlink(missing_ok=True)
    if taken:
        file.unlink()
    return taken


def _take_in_two_steps(file: Path, path: Path) -> bool:
    """For disks that know no links: an empty file holds the name until the other replaces it."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    os.replace(file, path)
    return True


def highest_count(folder: Path, stem: str) -> int:
    """Highest number after ``stem`` among the files of ``folder``, whatever their ending; 0 without any."""
    pattern = re.compile(re.escape(stem) + r"(\d{1,12})(?!\d)", re.IGNORECASE)
    found = (pattern.match(name) for name in os.listdir(folder))
    return max((int(match[1]) for match in found if match), default=0)


def _safe_part(part: str) -> str:
    part = part.encode(errors="replace").decode()  # a lone surrogate cannot be in a file name
    part = _FORBIDDEN.sub("_", part).rstrip(" .")  # Windows drops trailing dots and spaces, so ".. " would be ".."
    if _DEVICES.fullmatch(part):
        part = f"_{part}"
    if len(part.encode()) <= PART_BYTES:
        return part
    stem, dot, suffix = part.rpartition(".")
    suffix = f"{dot}{suffix}" if stem and len(suffix) <= 12 else ""
    return part.encode()[: PART_BYTES - len(suffix.encode())].decode(errors="ignore") + suffix


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if error.errno == errno.EFBIG:
        return "the file would be larger than this system allows"
    return error.strerror or type(error).__name__
