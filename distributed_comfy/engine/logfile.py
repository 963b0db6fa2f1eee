"""The log of an engine process: everything that it and its nodes print, one file per worker."""
from __future__ import annotations

import os
import re
from pathlib import Path

from distributed_comfy.log_lines import plain
from distributed_comfy.private_file import make_private_folder

LOG_LIMIT_BYTES = 5 * 2**20
"""A longer log is put aside when the engine starts."""

TAIL_LINES = 20
_COMPLAINT = re.compile(r"\S+: error: ")
_TAIL_BYTES = 16 * 2**10


class EngineLog:
    """One incarnation's part of the file; the one before is kept as ``<name>.1`` once it is long."""

    def __init__(self, path: Path) -> None:
        self.path = path
        make_private_folder(path.parent)
        if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
            os.replace(path, path.with_name(path.name + ".1"))
        self._start = path.stat().st_size if path.exists() else 0

    def tail(self) -> str:
        """The last `TAIL_LINES` lines since this engine started; empty if it said nothing."""
        try:
            with self.path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                start = self._start if end >= self._start else 0  # an agent cuts a long log while it is written to
                file.seek(max(start, end - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:  # somebody tidied up
            return ""
        return "\n".join(map(plain, text.rstrip().splitlines()[-TAIL_LINES:]))

    def last_words(self) -> str:
        """The tail without what comes before a program's complaint of its arguments: the list of all of them would fill it."""
        tail = self.tail()
        last = tail.rpartition("\n")[2]
        return last if _COMPLAINT.match(last) else tail
