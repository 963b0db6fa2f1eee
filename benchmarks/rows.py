"""What a benchmark gives: rows of numbers beside their targets, and words on how they came about."""
from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One number."""

    name: str
    """What was measured."""
    value: float
    unit: str = ""
    target: float | None = None
    """The largest value allowed; None for a number without a target."""
    note: str = ""
    """Spread, counts, parts: whatever helps to read the number."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.value <= self.target

    @property
    def verdict(self) -> str:
        """``met``, ``missed`` or nothing."""
        return "" if self.met is None else "met" if self.met else "missed"


@dataclass(frozen=True)
class Section:
    """The rows of one benchmark."""

    title: str
    how: str
    """How it was measured, for readers who want to know what a number means."""
    rows: Sequence[Row]
    limits: str = ""
    """What limits the numbers, where that is known."""


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of all values do not exceed (nearest rank, so it is one that was measured)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """``1.0 to 2.5 in 30``: for notes."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f} in {len(values)}"


def shown(value: float | None, unit: str) -> str:
    """A number for people: three significant digits, whole numbers whole."""
    if value is None:
        return ""
    before_point = math.floor(math.log10(abs(value))) if value else 0
    text = f"{value:.0f}" if value == int(value) else f"{value:.{max(0, 2 - before_point)}f}"
    return f"{text} {unit}".strip()
