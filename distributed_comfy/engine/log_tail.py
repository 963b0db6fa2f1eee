"""What an engine writes into its log, as it comes: whole lines for people, without colours and without every step of a progress bar."""
from __future__ import annotations

import os
import re
from pathlib import Path

from distributed_comfy.log_lines import level_and_text

READ_LIMIT_BYTES = 2**20
"""Most of the file that is read at once; what is further behind is skipped."""
BAR_INTERVAL_S = 5.0
"""How often a progress bar that is still growing becomes a line."""

_REST_LIMIT_BYTES = 2**16
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_BAR = re.compile(r"\d{1,3}%\|")
_BAR_BYTES = re.compile(rb"\d{1,3}%\|")
_BAR_BEFORE_A_LINE = re.compile(r"^.*\d{1,3}%\|.*?(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} )")
"""A bar has no line end while it grows, so what is logged meanwhile follows it."""


class LogTail:
    """The part of a file that was added since the last look; it may be replaced by a new one at any time.

    The file is not kept open, because Windows would then refuse to put it aside.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file, self._position = _identity_and_size(path)
        self.skipped_bytes = 0
        """Of the last `read`: what was left out, because too much was added at once."""

    def read(self) -> bytes:
        """What was added; empty where nothing was."""
        self.skipped_bytes = 0
        file, size = _identity_and_size(self._path)
        added = b""
        if file != self._file:
            aside = self._path.with_name(self._path.name + ".1")
            if _identity_and_size(aside)[0] == self._file:
                added = self._read_from(aside, _identity_and_size(aside)[1])
            self._file, self._position = file, 0
        elif size < self._position:  # somebody emptied it
            self._position = 0
        return added + self._read_from(self._path, size)

    def _read_from(self, path: Path, size: int) -> bytes:
        behind = size - self._position
        if behind <= 0:
            return b""
        if behind > READ_LIMIT_BYTES:
            self.skipped_bytes += behind - READ_LIMIT_BYTES
            self._position = size - READ_LIMIT_BYTES
        try:
            with path.open("rb") as file:
                file.seek(self._position)
                added = file.read(READ_LIMIT_BYTES)
        except OSError:  # it has just been put aside
            return b""
        self._position += len(added)
        return added


class LineFolder:
    """Bytes in, lines out; of a progress bar what it came to, and now and then how far it is."""

    def __init__(self) -> None:
        self._rest = b""
        self._bar_due = 0.0

    def feed(self, data: bytes, now: float) -> list[tuple[str, str]]:
        """Level and text of each line that is complete, or shows how far a bar is.

        Args:
            data: what was written since the last call.
            now: monotonic time.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = [told for line in lines if (told := self._line(line, now, ended=True))]
        head, again, last = self._rest.rpartition(b"\r")
        if again:  # the bar is written over again and again: only its last state is of interest
            self._rest = last if last.strip() else head.rpartition(b"\r")[2] + b"\r"
            if told := self._line(self._rest, now, ended=False):
                found.append(told)
        if len(self._rest) > _REST_LIMIT_BYTES:
            found += filter(None, [self._line(self._rest, now, ended=True)])
            self._rest = b""
        return found

    def end(self, now: float) -> list[tuple[str, str]]:
        """What is left without a line end, when no more comes."""
        told = self._line(self._rest, now, ended=True)
        self._rest = b""
        return [told] if told else []

    def _line(self, line: bytes, now: float, *, ended: bool) -> tuple[str, str] | None:
        """None for a blank line, and for a step of a bar that nobody needs to see."""
        parts = [part for part in line.split(b"\r") if part.strip()]
        if not parts or not (ended or _BAR_BYTES.search(parts[-1])):
            return None
        text = clean(parts[-1].decode(errors="replace"))
        level, text = level_and_text(_BAR_BEFORE_A_LINE.sub("", text))
        if not text.strip():
            return None
        if _BAR.search(text):
            whole = ended and "100%|" in text
            if not whole and now < self._bar_due:
                return None
            self._bar_due = now + BAR_INTERVAL_S
        return level, text


def clean(text: str) -> str:
    """``text`` without colours, movements of the cursor and other characters that do not show."""
    return _CONTROL.sub("", _ESCAPES.sub("", text)).rstrip()


def _identity_and_size(path: Path) -> tuple[tuple[int, int], int]:
    """Zeros where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0), 0
    return (found.st_dev, found.st_ino), found.st_size
