"""The order in which test files are given out."""
from __future__ import annotations

from pathlib import Path

from tests.run_order import SECONDS, SHARED


def test_every_file_of_the_order_is_there() -> None:
    files = {path.stem for path in Path(__file__).parents[1].rglob("test_*.py")}
    assert set(SECONDS) - set(SHARED.values()) - files == set()
    assert set(SHARED) - files == set()

