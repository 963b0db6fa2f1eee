"""What a scenario is, and the lists of all of them."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.smoke.field import COMFYUI, LONG, Ending, Field
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
    items: int
    """Of its job in the table, at least."""


SCENARIOS: dict[str, Scenario] = {}
"""Those with the built-in engine by name, in the order of the table."""
IN_COMFYUI: dict[str, Scenario] = {}
"""Those with real ComfyUI, which come after them."""


def scenario(name: str, fault: str, *promises: str, costs: Costs = ONE, short: bool = False) -> Callable[[Play], Play]:
    """Enter a function into the list of those with the built-in engine."""

    def enter(play: Play) -> Play:
        SCENARIOS[name] = Scenario(name, fault, costs, promises, play, short, LONG.items)
        return play

    return enter


def in_comfyui(name: str, fault: str, *promises: str, costs: Costs = ONE) -> Callable[[Play], Play]:
    """Enter a function into the list of those with real ComfyUI."""

    def enter(play: Play) -> Play:
        IN_COMFYUI[name] = Scenario(name, fault, costs, promises, play, False, COMFYUI.items)
        return play

    return enter
