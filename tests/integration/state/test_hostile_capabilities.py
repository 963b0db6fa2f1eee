"""Capabilities that name lists which they do not have: whoever looks values up goes on, and such a worker gets nothing."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.messages import Capability, Requirement
from distributed_comfy.orchestrator.waiting import needed_next
from distributed_comfy.panel.unserved import Unserved
from distributed_comfy.planning.requirements import matches
from distributed_comfy.state.matching import Matching
from distributed_comfy.state.records import WorkerFacts
from tests.state_cluster import Cluster

pytestmark = pytest.mark.redis

LOADER = "CheckpointLoaderSimple"
NEED = Requirement("", (LOADER,), ((LOADER, "ckpt_name", "one.safetensors"),))


def register(cluster: Cluster, name: str, **changes: Any) -> None:
    capability = Capability("comfyui", "1", (LOADER,), **changes)
    cluster.workers.register(WorkerFacts(name, "pc2", "cpu", "comfyui"), "life", f"cap-{name}", capability)


def matching_of(cluster: Cluster) -> Matching:
    """As another process has it, with the rule of planning."""
    return Matching(cluster.scripts, matches)


@pytest.mark.parametrize(
    "changes",
    [
        {"choices": {LOADER: {"ckpt_name": 99}}},
        {"choices": {LOADER: {"ckpt_name": 0}}},
        {"choices": {LOADER: {"ckpt_name": -1}}, "choice_lists": (("one.safetensors",),)},
        {"model_lists": {"checkpoints": 1}, "choice_lists": (("one.safetensors",),)},
        {"model_lists": {"checkpoints": -1}, "choice_lists": (("one.safetensors",),)},
    ],
)
def test_a_list_that_is_not_there_stops_neither_matching_nor_the_page(cluster: Cluster, changes: dict[str, Any]) -> None:
    register(cluster, "pc2-cpu", **changes)
    job_id = cluster.submit("a", needs=(LOADER,))
    matching = matching_of(cluster)
    assert matching.live() == {} and matching.capabilities() == {}
    matching.match_signatures([f"sig-{LOADER}"])
    register(cluster, "pc1-cpu", choices={LOADER: {"ckpt_name": 0}}, choice_lists=(("one.safetensors",),))
    assert matching.live().keys() == {"pc1-cpu"}
    record = SimpleNamespace(requirement=NEED, last_requirement=None)
    asked: Any = SimpleNamespace(matching=matching, jobs=SimpleNamespace(record=lambda _: record))
    assert Unserved().look(asked, {job_id: cluster.jobs.job_state(job_id)}) == {}


def test_a_job_about_which_nothing_can_be_said_takes_the_words_of_no_other(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {name: cluster.jobs.job_state(name) for name in (cluster.submit(need, needs=(need,)) for need in ("Broken", "Sampler"))}
    def look(record: Any, state: Any) -> Requirement | None:
        found = needed_next(record, state)
        if found and found.node_classes == ("Broken",):
            raise IndexError("tuple index out of range")
        return found

    monkeypatch.setattr("distributed_comfy.panel.unserved.needed_next", look)
    asked: Any = SimpleNamespace(matching=matching_of(cluster), jobs=cluster.jobs)
    found = Unserved().look(asked, jobs)
    assert list(found) == [list(jobs)[1]] and "no worker" in next(iter(found.values()))[0]
