"""Our lines in ComfyUI's log: marked as ours, without passwords, at the level that ComfyUI was started with."""
from __future__ import annotations

import copy
import importlib.util
import logging
import os

from distributed_comfy.settings import Settings, redact_url

_OURS = ("distributed_comfy", "tasks", "tiler")
_COMMON = ("tasks", "tiler")
"""Names that others may have given loggers of theirs."""
_CHATTY = ("celery", "kombu", "amqp")
"""Libraries whose every step is of interest to nobody but their authors."""
MARK = "[distributed-comfy] "


class _ToComfyUI(logging.Handler):
    """Hands a record to whatever shows ComfyUI's own; one of somebody else, whose logger has a name like ours, as it is.

    Args:
        folder: where ours has its code; empty where nobody else has that name.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = os.path.join(os.path.abspath(folder), "") if folder else ""

    def emit(self, record: logging.LogRecord) -> None:
        if not os.path.abspath(record.pathname).startswith(self._folder):
            logging.getLogger().handle(record)
            return
        marked = copy.copy(record)
        marked.msg, marked.args = MARK + redact_url(record.getMessage()), None
        logging.getLogger().handle(marked)


def join_log(settings: Settings) -> None:
    """Write to ComfyUI's log from now on; a second time changes nothing."""
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.propagate = False
        if not any(isinstance(handler, _ToComfyUI) for handler in logger.handlers):
            logger.addHandler(_ToComfyUI(_folder_of(name) if name in _COMMON else ""))
        if settings.log_level == "DEBUG":
            logger.setLevel(logging.DEBUG)
    for name in _CHATTY:
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)


def _folder_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    return os.path.dirname(spec.origin) if spec is not None and spec.origin else ""
