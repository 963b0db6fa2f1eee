"""The files that this worker has put into ComfyUI's input folder: each content once, and not more of them than a bound.

ComfyUI has no way to delete a file.  A name is that of a content and never used for another one, because nodes may remember what a name
held; what is not needed any more is emptied, the longest unused first, so that the folder keeps names but no bytes.
"""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path

from distributed_comfy.transport.files import sha256_of

FOLDER = "distributed-comfy"
"""Subfolder of ComfyUI's input and output folders in which all of ours lies; in it each worker has one of its own."""

LIMIT_BYTES = 2**30
"""Most that lies there beside what the present item needs."""

Upload = Callable[[Path, str, str], str]
"""`ComfyServer.upload`."""


class InputShelf:
    """Names and sizes of what lies in ComfyUI's input folder; remembered in a file, so that a new process goes on with it."""

    def __init__(self, upload: Upload, worker: str, record: Path, empty: Path) -> None:
        """Args:
        upload: sends a file.
        worker: its name; two workers of one ComfyUI know nothing of each other's files.
        record: where to remember.
        empty: a path for an empty file.
        """
        self._upload = upload
        self._folder = f"{FOLDER}/{worker}"
        self._record = record
        self._empty = empty
        self._sizes = _remembered(record)
        self._sent: set[str] = set()
        """Sent by this process: what an earlier one sent may have been removed by the user."""

    def put(self, content: Path, suffix: str = "") -> str:
        """Have a file there; its name as loaders take it, ``distributed-comfy/<worker>/...``.

        Args:
            content: the file.
            suffix: end of its name, which tells what it is; that of ``content`` by default.
        """
        name = f"{sha256_of(content)[:24]}{suffix or content.suffix}"
        size = self._sizes.pop(name, 0)
        if name not in self._sent or not size:
            self._upload(content, name, self._folder)
            self._sent.add(name)
        self._sizes[name] = content.stat().st_size
        self._write()
        return f"{self._folder}/{name}"

    def note_there(self, names: Collection[str]) -> None:
        """Somebody who sees the folder says what is in it; all else is sent again."""
        self._sent &= set(names)

    def tidy(self, needed: Collection[str]) -> None:
        """Empty the longest unused files over the limit, but none of ``needed``, which are names that `put` gave."""
        total = sum(self._sizes.values())
        for name in list(self._sizes):
            if total <= LIMIT_BYTES:
                break
            if f"{self._folder}/{name}" not in needed:
                total -= self._sizes.pop(name)
                self._empty.write_bytes(b"")
                self._upload(self._empty, name, self._folder)
                self._sent.discard(name)
        self._write()

    def _write(self) -> None:
        """Whole or not at all: this process may be killed at any time."""
        partial = self._record.with_suffix(".part")
        partial.write_text(json.dumps(self._sizes))
        os.replace(partial, self._record)


def _remembered(record: Path) -> dict[str, int]:
    sizes: dict[str, int] = json.loads(record.read_text()) if record.is_file() else {}
    return sizes
