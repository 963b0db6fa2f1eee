"""Rows of the page, made of what other hosts say of themselves: an odd record takes only its own row away."""
from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

_MOST_NAMED = 1000


class RowMaker:
    """Used by one thread."""

    def __init__(self) -> None:
        self._odd: set[str] = set()

    def make(self, what: str, row: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """A row of which any browser can read the numbers; None where nothing can be made of its record, which is logged once.

        Args:
            what: whose it is, for the log.
            row: makes it; may fail in any way.
        """
        try:
            made: dict[str, Any] = finite(row())
        except Exception as error:  # noqa: BLE001 - whatever another host wrote must not end the thread that all pages live by
            if what not in self._odd and len(self._odd) < _MOST_NAMED:
                self._odd.add(what)
                log.warning("the panel leaves %s out: its record makes no sense (%s: %s)", what, type(error).__name__, error)
            return None
        self._odd.discard(what)
        return made


def finite(value: Any) -> Any:
    """The same with 0 for each number that JSON does not have; plain values inside dicts, lists and tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else 0.0
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, (list, tuple)) else value
