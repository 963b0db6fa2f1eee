"""Each fault on a running job: nothing is lost, nothing counts twice, no execution more than that fault costs, the same bytes.

``make smoke`` plays all of them at the times that a cluster has by default, and prints the table of docs/reliability.md; the tests that run
always play some of them at shorter times.
"""
from __future__ import annotations

import sys

import pytest

from tests.cluster_rig import left_in_memory
from tests.smoke import every_scenario  # noqa: F401 - fills the list
from tests.smoke.field import Ending, Field
from tests.smoke.measured import Measured
from tests.smoke.scenario import SCENARIOS, Scenario

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if scenario.short])
def test_a_fault_loses_nothing_at_short_times(short_field: Field, measured: list[Measured], name: str) -> None:
    play(SCENARIOS[name], short_field, measured)


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is used on Linux")
@pytest.mark.parametrize("name", ["engine killed", "worker killed", "master killed"])
def test_a_fault_loses_nothing_and_leaves_nothing_where_results_go_through_memory(memory_field: Field, name: str) -> None:
    before = results_in_redis(memory_field)
    memory_field.undisturbed(memory_field.prompt(), memory_field.timing.items)
    assert results_in_redis(memory_field) == before, "none went another way"
    ending = play(SCENARIOS[name], memory_field, [])
    assert not [job_id for job_id in ending.job_ids if left_in_memory(job_id)]


def results_in_redis(field: Field) -> int:
    """Chunks that have been written into the blob server."""
    stats = field.cluster.blob_client.info("commandstats")
    return int(stats.get("cmdstat_set", {"calls": 0})["calls"])


@pytest.mark.smoke
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_loses_nothing(long_field: Field, measured: list[Measured], name: str) -> None:
    play(SCENARIOS[name], long_field, measured)


def play(scenario: Scenario, field: Field, measured: list[Measured]) -> Ending:
    with field.measuring(scenario.name, scenario.fault, scenario.costs, measured) as endings:
        endings.append(scenario.play(field))
    row = measured[-1]
    assert not row.faults, f"{row}\n{field.rig.logs()}"
    return endings[0]
