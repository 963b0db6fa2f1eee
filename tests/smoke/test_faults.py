"""Each fault on a running job: nothing is lost, nothing counts twice, no execution more than that fault costs, the same bytes.

``make smoke`` plays all of them at the times that a cluster has by default, and prints the table of docs/reliability.md; the tests that run
always play some of them at shorter times.
"""
from __future__ import annotations

import pytest

from tests.smoke import every_scenario  # noqa: F401 - fills the list
from tests.smoke.field import Field
from tests.smoke.measured import Measured
from tests.smoke.scenario import SCENARIOS, Scenario

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if scenario.short])
def test_a_fault_loses_nothing_at_short_times(short_field: Field, measured: list[Measured], name: str) -> None:
    play(SCENARIOS[name], short_field, measured)


@pytest.mark.smoke
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_loses_nothing(long_field: Field, measured: list[Measured], name: str) -> None:
    play(SCENARIOS[name], long_field, measured)


def play(scenario: Scenario, field: Field, measured: list[Measured]) -> None:
    with field.measuring(scenario.name, scenario.fault, scenario.costs, measured) as endings:
        endings.append(scenario.play(field))
    row = measured[-1]
    assert not row.faults, f"{row}\n{field.rig.logs()}"
