"""Logging of every command, set up once: text or JSON, never a password."""
from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Literal

from distributed_comfy.cli.output import Output
from distributed_comfy.log_lines import make_formatter
from distributed_comfy.settings import Settings, ignored_variables

FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
_CHATTY = ("celery", "kombu", "amqp", "PIL", "urllib3", "asyncio")
"""Libraries whose every step is of interest to nobody but their authors."""


class OutputHandler(logging.Handler):
    """Writes through `Output`, so that a progress display stays whole."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; a log line that cannot be printed must not end the work."""
        try:
            self._output.line(self.format(record))
        except OSError:  # standard error is closed
            self.handleError(record)


def set_up_logging(settings: Settings, output: Output, *, audience: Literal["person", "supervisor"], child: bool = False) -> None:
    """Send all logs to standard error, and say there which variables are misspelt.

    Args:
        settings: level.
        output: where lines go.
        audience: a person at a terminal sees progress and results anyway, so only warnings are shown unless DEBUG was asked for; a
            supervisor gets everything.
        child: a command of ours started this one, and has said that.
    """
    handler = OutputHandler(output)
    formatter = make_formatter(settings.log_format, FORMAT)
    handler.setFormatter(formatter)
    if settings.log_format == "json":
        output.write_remarks_as(formatter)
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
    debugging = settings.log_level == "DEBUG"
    quiet = audience == "person" and not debugging and settings.log_level == "INFO"
    logging.basicConfig(level="WARNING" if quiet else settings.log_level, handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel("INFO" if debugging else "WARNING")
    if not child and (ignored := ignored_variables()):
        output.warn(ignored)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What would be printed over several lines becomes one."""
    logging.getLogger(__name__).critical("the command ended unexpectedly", exc_info=(kind, error, trace))
