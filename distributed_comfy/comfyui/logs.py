"""Our lines in ComfyUI's log: marked as ours, without passwords, at the level that ComfyUI was started with.

ComfyUI's console shows no times, so ours has none there either; a file of our own keeps the same lines with them.
"""
from __future__ import annotations

import copy
import importlib.util
import io
import logging
import os
from functools import cache
from pathlib import Path

from distributed_comfy.agent.rotated_log import cut_if_long
from distributed_comfy.log_lines import make_formatter
from distributed_comfy.private_file import append_privately
from distributed_comfy.settings import LogFormat, Settings, redact_url

log = logging.getLogger(__name__)

_OURS = ("distributed_comfy", "tasks", "tiler")
_COMMON = ("tasks", "tiler")
"""Names that others may have given loggers of theirs."""
_CHATTY = ("celery", "kombu", "amqp")
"""Libraries whose every step is of interest to nobody but their authors."""
MARK = "[distributed-comfy] "
FILE_NAME = "comfyui.log"
_FORMAT = "%(asctime)s %(levelname)-7s %(process)d %(message)s"
"""With the process, because several ComfyUIs of a user may write to it."""


class _ToComfyUI(logging.Handler):
    """Hands a record to whatever shows ComfyUI's own; one of somebody else, whose logger has a name like ours, as it is.

    Args:
        folder: where ours has its code; empty where nobody else has that name.
        dated: gets ours with their times, too; None where there is no such file.
    """

    def __init__(self, folder: str, dated: logging.Handler | None) -> None:
        super().__init__()
        self._dated = dated
        self._folder = os.path.join(os.path.abspath(folder), "") if folder else ""

    def emit(self, record: logging.LogRecord) -> None:
        if not os.path.abspath(record.pathname).startswith(self._folder):
            logging.getLogger().handle(record)
            return
        marked = copy.copy(record)
        marked.msg, marked.args = MARK + redact_url(record.getMessage()), None
        logging.getLogger().handle(marked)
        if self._dated is not None:
            self._dated.handle(record)


class _DatedFile(logging.FileHandler):
    """A file for this user's eyes."""

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(append_privately(Path(self.baseFilename)), encoding="utf-8", errors="replace")


def join_log(settings: Settings) -> None:
    """Write to ComfyUI's log, and to a file, from now on; a second time changes nothing."""
    dated = _dated_file(settings.cache_folder / FILE_NAME, settings.log_format)
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.propagate = False
        if not any(isinstance(handler, _ToComfyUI) for handler in logger.handlers):
            logger.addHandler(_ToComfyUI(_folder_of(name) if name in _COMMON else "", dated))
        if settings.log_level == "DEBUG":
            logger.setLevel(logging.DEBUG)
    for name in _CHATTY:
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)


@cache
def _dated_file(path: Path, log_format: LogFormat) -> logging.Handler | None:
    try:
        cut_if_long(path)
        handler = _DatedFile(path)
    except OSError as error:
        log.debug("no log with times in %s: %s", path, error)
        return None
    handler.setFormatter(make_formatter(log_format, _FORMAT))
    return handler


def _folder_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    return os.path.dirname(spec.origin) if spec is not None and spec.origin else ""
