"""Logs of bounded size: what a worker prints goes through a pipe into files that take turns; a file others write to is cut in place."""
from __future__ import annotations

import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO

from distributed_comfy.private_file import append_privately

LIMIT_BYTES = 10 * 2**20
KEPT = 2
"""Files kept beside the one that is written to: ``worker.log.1`` is the one before, ``.2`` the one before that."""
_READ_BYTES = 65_536


class RotatedLog:
    """Appends to ``path``; begins a new file, where it can with a new line, before one gets longer than ``limit_bytes``."""

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES, kept: int = KEPT) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._kept = kept
        self._file: BinaryIO | None = None
        self._size = 0
        self._open()

    def write(self, data: bytes) -> None:
        """Append some bytes.

        Raises:
            OSError: the disk is full, or the folder cannot be made again; the next call tries anew.
        """
        while data:
            file = self._file or self._open()
            room = self._limit_bytes - self._size
            part = data if len(data) <= room else data[: data.rfind(b"\n", 0, max(room, 0)) + 1]
            if not part and not self._size:
                part = data[: self._limit_bytes]  # a line that is longer than a file
            file.write(part)
            self._size += len(part)
            data = data[len(part) :]
            if data:
                self.close()
                age(self._path, self._kept)
                with suppress(FileNotFoundError):  # somebody has tidied up
                    os.replace(self._path, self._path.with_name(f"{self._path.name}.1"))

    def close(self) -> None:
        """Write no more, or into a new file."""
        file, self._file, self._size = self._file, None, 0
        if file is not None:
            file.close()

    def _open(self) -> BinaryIO:
        self._file = file = append_privately(self._path)
        self._size = file.tell()
        return file


def age(path: Path, kept: int = KEPT) -> None:
    """Make room for a new ``path.1``: that becomes ``path.2``, and so on, and the oldest goes."""
    for number in range(kept, 1, -1):
        with suppress(FileNotFoundError):
            os.replace(path.with_name(f"{path.name}.{number - 1}"), path.with_name(f"{path.name}.{number}"))


def cut_if_long(path: Path, limit_bytes: int = LIMIT_BYTES, kept: int = KEPT) -> bool:
    """Copy a long file aside and empty it where it stands, for one that another process appends to; lines of that moment may be lost.

    Returns:
        Whether it was cut.
    """
    try:
        if path.stat().st_size <= limit_bytes:
            return False
        age(path, kept)
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)
    except FileNotFoundError:  # not written yet, or just put aside by its owner
        return False
    return True


def pump(source: IO[bytes], target: RotatedLog, name: str) -> threading.Thread:
    """Copy a pipe into a log until its other end closes, from a thread that is returned; a full disk loses lines and ends nobody."""

    def copy() -> None:
        with source:
            while data := os.read(source.fileno(), _READ_BYTES):
                with suppress(OSError, ValueError):  # whatever becomes of its log, the worker must be able to go on printing
                    target.write(data)
        target.close()

    thread = threading.Thread(target=copy, name=f"log of {name}", daemon=True)
    thread.start()
    return thread
