"""What a disturbed job was like beside an undisturbed one, and the tables of it."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.command_line import texts

TARGET_S = 8.0
"""Until an item is claimable again that a fault took away."""
LEASE_S = 6.0
"""So much longer it may take at most, where reapers have paused and everybody got one lease more: docs/reliability.md."""
COLUMNS = (
    "Scenario", "What is done", "Items lost", "Counted twice", "Executions", "Expected", "Engine seconds wasted", "Claimable again after",
    "Same bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """What a fault may cost."""

    least: int
    """Executions beyond one per item."""
    most: int
    again_s: float = TARGET_S
    """Until the item that it hit is claimable again."""

    def of(self, items: int) -> str:
        """The number of executions expected of a job."""
        numbers = dict.fromkeys((items + self.least, items + self.most))
        return " to ".join(map(str, numbers))


NOTHING, ONE = Costs(0, 0), Costs(1, 1)


@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    scenario: str
    fault: str
    items: int
    lost: int
    """Items that are not among the files of the job."""
    twice: int
    """Items that are there more than once, or were told of more than once."""
    executions: int
    """Lines that engines wrote before they began an item."""
    costs: Costs
    wasted_s: float | None
    """Steps that engines made beyond those of the undisturbed job; None where its items have no steps."""
    claimable_s: float | None
    """From the fault until the table offered the item again; None where it did not have to."""
    identical: bool
    """Each file has the bytes that it has without a disturbance."""
    took_s: float
    hit: bool = False
    """Whether the fault took an item away that is known."""

    @property
    def faults(self) -> list[str]:
        """What of it must not be, in words."""
        extra = self.executions - self.items
        found = {
            f"{self.lost} items are lost": self.lost > 0,
            f"{self.twice} items are there twice": self.twice > 0,
            f"{self.executions} executions, not {self.costs.of(self.items)}": not self.costs.least <= extra <= self.costs.most,
            "the item that it hit was never given back": self.hit and self.claimable_s is None,
            f"slow: claimable again after {self.claimable_s} s": (self.claimable_s or 0.0) > self.costs.again_s + LEASE_S,
            "its files differ from those of an undisturbed job": not self.identical,
        }
        return [what for what, is_so in found.items() if is_so]

    @property
    def cells(self) -> list[str]:
        """In the order of `COLUMNS`."""
        again = "-" if self.claimable_s is None else f"{self.claimable_s:.2f} s"
        if self.claimable_s is not None and self.claimable_s > self.costs.again_s:
            again += f", missed {self.costs.again_s:g} s"
        wasted = "-" if self.wasted_s is None else f"{max(0.0, self.wasted_s):.1f}"
        return [
            self.scenario, self.fault, f"{self.lost} of {self.items}", str(self.twice), str(self.executions), self.costs.of(self.items),
            wasted, again, "yes" if self.identical else "NO",
        ]  # fmt: skip


ROWS: list[Measured] = []
"""What this run of the tests has measured so far."""


def images(folder: Path) -> dict[str, list[bytes]]:
    """Seed -> the files that show it."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(folder.rglob("*.png")):
        found.setdefault(str(texts(path)["seed"]), []).append(path.read_bytes())
    return found


def lost_and_twice(wanted: Mapping[str, Sequence[bytes]], found: Mapping[str, Sequence[bytes]], told: Iterable[int]) -> tuple[int, int]:
    """How many items are lost, and how many are there, or were told of, more than once.

    Args:
        wanted: images of the undisturbed job.
        found: those of the disturbed one.
        told: indexes of items in the order in which its collector told of them.
    """
    surplus = sum(len(files) - 1 for files in found.values()) + len(found.keys() - wanted.keys())
    return len(wanted.keys() - found.keys()), surplus + sum(count - 1 for count in Counter(told).values())


def markdown(rows: Iterable[Sequence[str]], columns: Sequence[str] = COLUMNS) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(rows: Iterable[Measured], **facts: Any) -> str:
    """All that was measured, and where."""
    return json.dumps({**facts, "scenarios": [asdict(row) for row in rows]}, indent=1)
