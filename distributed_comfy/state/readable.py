"""Records of other processes that may be of another version, or damaged: what cannot be read is left out, and told once."""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from distributed_comfy.errors import MessageVersionUnknown

log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_TOLD = 1000
"""Whoever damages records without end does not fill the log with them."""


class ReadableRecords:
    """Reads records one by one, so that none of them stands in the way of the others; safe to use from several threads."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def read(self, whose: str, read: Callable[[], T]) -> T | None:
        """What ``read`` gives; None where the record is none of this version.

        Args:
            whose: named when that is told, like ``worker pc2-cpu``.
            read: raises `MessageVersionUnknown`, `ValueError` or `TypeError` where it cannot be read.
        """
        try:
            found = read()
        except (MessageVersionUnknown, ValueError, TypeError) as error:
            self.leave_out(whose, str(error))
            return None
        with self._lock:
            self._told.discard(whose)
        return found

    def leave_out(self, whose: str, reason: str) -> None:
        """Tell that something of somebody is not believed; once, until it can be read again."""
        with self._lock:
            first = whose not in self._told and len(self._told) < _MOST_TOLD
            self._told |= {whose} if first else set()
        if first:
            log.warning("%s is left out: %s", whose, reason)
