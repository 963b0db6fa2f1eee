"""What a scenario is, and the list of all of them."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.smoke.field import Ending, Field
from tests.smoke.measured import ONE, Costs

Play = Callable[[Field], Ending]
"""Runs the field's job, lets the fault strike, and waits for the job's end."""


@dataclass(frozen=True)
class Scenario:
    """One fault."""

    name: str
    fault: str
    """What is done, in words."""
    costs: Costs
    """Executions that it may cost, beyond one per item."""
    promises: tuple[str, ...]
    """Keys of `promises.PROMISES`: what must hold for the job to end as if nothing had been."""
    play: Play
    short: bool
    """Whether it is played with every run of the tests, too, at shorter times."""


SCENARIOS: dict[str, Scenario] = {}
"""By name, in the order of the table."""


def scenario(name: str, fault: str, *promises: str, costs: Costs = ONE, short: bool = False) -> Callable[[Play], Play]:
    """Enter a function into the list."""

    def enter(play: Play) -> Play:
        SCENARIOS[name] = Scenario(name, fault, costs, promises, play, short)
        return play

    return enter
