"""Which test files are given to the processes of xdist first: those that take longest, so that none of them is left for the end.

A file is never divided: its tests share clusters.  The seconds are rough, of one process on an idle machine; a file that is not listed
takes few.  ``make test ARGS=--durations=50`` shows what has become slow.
"""
from __future__ import annotations

from pathlib import Path

import pytest

SECONDS: dict[str, int] = {}


def longest_first(items: list[pytest.Item]) -> None:
    """Sort tests by their file's length, and otherwise leave them as they are."""
    items.sort(key=lambda item: -SECONDS.get(Path(item.path).stem, 0))
