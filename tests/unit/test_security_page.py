"""SECURITY.md: every promise names a test that is there."""
from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def promises() -> list[tuple[str, list[str]]]:
    """Text of each promise, and what proves it."""
    rows = [line.strip("|").split("|") for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")]
    return [(promise.strip(), re.findall(r"`([^`]+)`", proofs)) for promise, proofs in rows if promise.strip() != "Promise"]


def test_every_promise_has_a_test_that_is_there() -> None:
    known = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    found = promises()
    assert len(found) >= 15
    for promise, proofs in found:
        assert proofs, promise
        for proof in proofs:
            assert proof in known or (ROOT / proof).is_dir(), f"{promise}: there is no {proof}"
