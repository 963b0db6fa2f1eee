"""Our lines in ComfyUI's log: marked as ours, without passwords, at the level that ComfyUI was started with."""
from __future__ import annotations

import copy
import logging

from distributed_comfy.settings import Settings, redact_url

_OURS = ("distributed_comfy", "tasks", "tiler")
_CHATTY = ("celery", "kombu", "amqp")
"""Libraries whose every step is of interest to nobody but their authors."""
MARK = "[distributed-comfy] "


class _ToComfyUI(logging.Handler):
    """Hands a record to whatever shows ComfyUI's own."""

    def emit(self, record: logging.LogRecord) -> None:
        marked = copy.copy(record)
        marked.msg, marked.args = MARK + redact_url(record.getMessage()), None
        logging.getLogger().handle(marked)


def join_log(settings: Settings) -> None:
    """Write to ComfyUI's log from now on; a second time changes nothing."""
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.propagate = False
        if not any(isinstance(handler, _ToComfyUI) for handler in logger.handlers):
            logger.addHandler(_ToComfyUI())
        if settings.log_level == "DEBUG":
            logger.setLevel(logging.DEBUG)
    for name in _CHATTY:
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)
