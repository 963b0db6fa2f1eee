"""What a look at one thing found: good or not, what was there, what to do."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]
"""``warn``: works, but something should be better; ``fail``: something does not work, or nothing is safe."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    """What was looked at, a few words."""
    level: Level
    found: str
    """No password in it."""
    remedy: str = ""
    """What to do; empty for ``ok``."""


def ok(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "ok", found)


def warn(check: str, found: str, remedy: str) -> Finding:
    """Works, but should be better."""
    return Finding(check, "warn", found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    """Does not work, or is not safe."""
    return Finding(check, "fail", found, remedy)


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether nothing failed."""
    return all(finding.level != "fail" for finding in findings)
