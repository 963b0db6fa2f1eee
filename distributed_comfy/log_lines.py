"""What a line of a log looks like: text for people, or one JSON object with job, item and worker; passwords of URLs in neither.

Job and item come from the line's own words (``item 3f9a12bc77d0-4``, ``job 3f9a12bc77d0 item 4``), else from what its thread is doing,
which whoever begins an item says by `subject` or `now_about`.
"""
from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any, TextIO

from distributed_comfy.messages import item_id
from distributed_comfy.settings import LogFormat, redact_url

_Subject = tuple[str, str]
_NOBODY: _Subject = ("", "")
_SUBJECT: ContextVar[_Subject] = ContextVar("subject", default=_NOBODY)
_DATED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) +(?:[\w.]+:(?: |$))?", re.ASCII)
"""What stands before the message in a line of text of ours."""
_BAR = re.compile(r"\d{1,3}%\|")
_BAR_BEFORE_A_LINE = re.compile(r"^.*\d{1,3}%\|.*?(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} )")
_ERROR = re.compile(
    r"error|exception|\bfail|cannot|can't|could not|fatal|killed|abort|denied|refused|not found|no such|out of memory|segmentation", re.I
)
"""What a line has that tells of an error, where no level says so."""
_NAMED = re.compile(r"\bitem ([0-9a-f]{12})-(\d+)\b|\bjob ([0-9a-f]{12})\b(?:,? item (\d+)\b)?", re.ASCII)


# -- what a thread is doing ---------------------------------------------------------------------------------------------
def now_about(job_id: str = "", index: int | None = None) -> None:
    """From here on this thread works for this item, or job, or nobody; lines after the end of a Celery task still belong to it."""
    _SUBJECT.set(_subject(job_id, index))


@contextmanager
def subject(job_id: str, index: int | None = None) -> Iterator[None]:
    """While the context lasts, this thread works for this item or job."""
    token = _SUBJECT.set(_subject(job_id, index))
    try:
        yield
    finally:
        _SUBJECT.reset(token)


def _subject(job_id: str, index: int | None) -> _Subject:
    return (job_id, "" if index is None else item_id(job_id, index))


def _subject_of(message: str) -> _Subject:
    """Job and item id that a line is about; empty where it is about neither."""
    found = _NAMED.search(message)
    if found is None:
        return _SUBJECT.get()
    job_id, index = (found[1], found[2]) if found[1] else (found[3], found[4])
    job, item = _SUBJECT.get()
    if index is None and job == job_id:
        return job, item  # the line names its job only
    return job_id, item_id(job_id, int(index)) if index is not None else ""


# -- lines --------------------------------------------------------------------------------------------------------------
class TextFormatter(logging.Formatter):
    """Takes the passwords out of URLs, whoever logs them."""

    def format(self, record: logging.LogRecord) -> str:
        """The line (and traceback) of a record."""
        return redact_url(super().format(record))


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message; worker, job and item where there is one; error with the traceback of one."""

    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self.worker = worker
        """Name of the worker that this process is, or belongs to."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        message = redact_url(record.getMessage())
        job_id, item = _subject_of(message)
        entry = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
            "worker": self.worker,
            "job": job_id,
            "item": item,
            "error": redact_url(self.formatException(record.exc_info)) if record.exc_info and record.exc_info[0] else "",
        }
        return json.dumps({name: value for name, value in entry.items() if value or name == "message"}, ensure_ascii=False)


def make_formatter(log_format: LogFormat, text: str, worker: str = "") -> logging.Formatter:
    """A formatter.

    Args:
        log_format: ``text`` or ``json``.
        text: `logging` format of a line of text.
        worker: name of the worker, for JSON.
    """
    return JsonFormatter(worker) if log_format == "json" else TextFormatter(text)


def name_worker(worker: str) -> None:
    """This process is a worker of this name: lines that are JSON say so from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, JsonFormatter):
            handler.formatter.worker = worker


def plain(line: str) -> str:
    """A line for people: the message (and traceback) of one that is JSON, any other line as it is."""
    if not line.startswith('{"time": '):
        return line
    try:
        entry: Any = json.loads(line)
        return "\n".join(part for part in (entry["message"], entry.get("error")) if part)
    except (ValueError, KeyError, TypeError, RecursionError):  # a node's own
        return line


def level_and_text(line: str) -> tuple[str, str]:
    """Level and message of a line of a log, of either format; an empty level and the line itself for what is none, as a print."""
    if line.startswith('{"time": '):
        try:
            entry: Any = json.loads(line)
            level = entry["level"] if entry["logger"] not in ("stdout", "stderr") else ""
            return str(level), plain(line)
        except (ValueError, KeyError, TypeError, RecursionError):  # a node's own
            return "", line
    found = _DATED.match(line)
    return (found[1], line[found.end() :]) if found else ("", line)


def complaint(lines: Iterable[str]) -> str:
    """The last line of a log that tells of an error, for people; empty where none does.

    What was merely logged, and the steps of a progress bar, are no cause of anything.
    """
    for line in reversed(list(lines)):
        level, text = level_and_text(_BAR_BEFORE_A_LINE.sub("", line.rstrip().rpartition("\r")[2]))
        text = text.strip()
        if level in ("ERROR", "CRITICAL") or (not level and _ERROR.search(text) and not _BAR.search(text)):
            return text
    return ""


# -- what does not come through logging ---------------------------------------------------------------------------------
class PrintedLines(io.RawIOBase):
    """Makes each line that is written to it a line of the log; what has no line end yet waits for it."""

    def __init__(self, target: TextIO, formatter: logging.Formatter, name: str) -> None:
        """
        Args:
            target: takes whole lines.
            formatter: makes them.
            name: said to be the logger.
        """
        super().__init__()
        self._target = target
        self._formatter = formatter
        self._name = name
        self._rest = b""
        self._lock = threading.Lock()

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """For programs that nodes start: what those print is not made a line of ours."""
        return self._target.fileno()

    def write(self, data: Any, /) -> int:
        """Take bytes; a progress bar's carriage return ends a line too."""
        with self._lock:
            *lines, self._rest = re.split(rb"[\r\n]+", self._rest + bytes(data))
        for line in lines:
            if line.strip():
                record = logging.makeLogRecord({"name": self._name, "levelname": "INFO", "msg": line.decode(errors="replace")})
                self._target.write(self._formatter.format(record) + "\n")
        self._target.flush()
        return len(data)


def capture_prints(target: TextIO, formatter: logging.Formatter) -> None:
    """From here on what this process prints goes to ``target`` line by line, as lines of the log."""
    for name in ("stdout", "stderr"):
        raw = PrintedLines(target, formatter, name)
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="replace", line_buffering=True))
