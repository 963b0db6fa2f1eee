"""Remembers in a job's spool which of its files lie in the user's folder, so that a collector that starts again saves none twice."""
from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path

from distributed_comfy.collector.naming import writing

LIST = "saved.jsonl"
"""One line per file, in the spool's folder: its key (what it is, then the item it is of, then what else tells it from others) and its path
below the user's folder."""


class SavedFiles:
    """The files of one job that have their names; safe to use from several threads.

    Args:
        spool: folder of the job's spool.
        out: the user's folder; files that were saved to another one do not count.
    """

    def __init__(self, spool: Path, out: Path) -> None:
        self._list = spool / LIST
        self._out = out
        self._lock = threading.Lock()
        self._saved = self._read()

    def find(self, key: str) -> Path | None:
        """Where the file lies; None where it was not saved, or is not there any more as it was."""
        noted = self._saved.get(key)
        if noted is None:
            return None
        try:
            found = noted.path.stat()
        except OSError:
            return None
        return noted.path if (found.st_size, found.st_mtime_ns) == (noted.size_bytes, noted.mtime_ns) else None

    def items(self) -> dict[Path, int]:
        """All files that are there as they were saved: where each lies, and the item it is of."""
        return {path: int(key.split(" ")[1]) for key in tuple(self._saved) if (path := self.find(key)) is not None}

    def note(self, key: str, file: Path, path: Path) -> None:
        """Say that ``file`` is about to get the name ``path``; if that is taken, the next note counts instead."""
        found = file.stat()
        noted = _Saved(path, found.st_size, found.st_mtime_ns)
        relative, out = path.relative_to(self._out).as_posix(), str(self._out.resolve())
        line = json.dumps({"key": key, "out": out, "path": relative, "size_bytes": noted.size_bytes, "mtime_ns": noted.mtime_ns})
        with self._lock, writing(self._list), self._list.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")
        self._saved[key] = noted

    def _read(self) -> dict[str, _Saved]:
        try:
            lines = self._list.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return {}
        here = str(self._out.resolve())
        found = {}
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # the collector died while it wrote the line
                continue
            if entry["out"] == here:
                found[entry["key"]] = _Saved(self._out / entry["path"], entry["size_bytes"], entry["mtime_ns"])
        return found


@dataclass(frozen=True)
class _Saved:
    path: Path
    size_bytes: int
    mtime_ns: int
    """With the size, what tells our file from one that somebody else put there under this name."""
