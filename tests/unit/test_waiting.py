"""A job that nobody can run: what is told, when, and when it is given up."""
from __future__ import annotations

from dataclasses import replace

import pytest

from distributed_comfy.errors import NoCapableWorker, NoWorker
from distributed_comfy.messages import JobRecord, Requirement
from distributed_comfy.orchestrator.progress import Waits
from distributed_comfy.orchestrator.waiting import LEFT_ALONE, KeptResults, Wait, nobody_can_run, why_it_waits
from distributed_comfy.state.records import JobState
from tests.prompts import capability

FIRST = Requirement("", ("KSampler",), (("CheckpointLoaderSimple", "ckpt_name", "a.safetensors"),))
LAST = Requirement("", ("SaveImage",))
JOB = JobRecord("ab", "ann", 5, 3, (), "", has_last_stage=True, requirement=FIRST, last_requirement=LAST)
ABLE = capability()
WITHOUT_MODEL = capability(choice_lists=(("other.safetensors",), ()))
NOBODY = NoWorker(remedy="start one")
LACKS = NoCapableWorker(lacks="w1 lacks tag big")


def state(pending: int, running: int = 0, name: str = "pending") -> JobState:
    return JobState(name, counts={"pending": pending, "running": running, "done": 3 - pending - running, "failed": 0, "total": 3})  # type: ignore[arg-type]


def test_a_worker_that_lacks_the_model_is_named_with_what_it_lacks() -> None:
    error = nobody_can_run(JOB, state(3), {"w1": WITHOUT_MODEL})
    assert isinstance(error, NoCapableWorker)
    assert why_it_waits(error).startswith("no live worker can run it: w1 lacks model 'a.safetensors'")
    assert nobody_can_run(JOB, state(3), {"w1": WITHOUT_MODEL, "w2": ABLE}) is None


def test_without_any_worker_that_is_said() -> None:
    error = nobody_can_run(JOB, state(3), {})
    assert isinstance(error, NoWorker) and why_it_waits(error) == "no worker is running"


def test_only_what_comes_next_counts() -> None:
    assert nobody_can_run(JOB, state(1, name="running"), {"w1": WITHOUT_MODEL}) is None, "the last stage needs no model"
    saves_nothing = capability(node_classes=("KSampler",))
    assert "SaveImage" in str(nobody_can_run(JOB, state(1, name="running"), {"w1": saves_nothing}))
    alone = replace(JOB, has_last_stage=False, last_requirement=None)
    assert nobody_can_run(alone, state(1), {"w1": WITHOUT_MODEL}) is not None


@pytest.mark.parametrize("found", [state(2, 1, "running"), state(3, 0, "paused"), state(3, 0, "parked"), state(0, 0, "done")])
def test_a_job_of_which_something_runs_or_that_is_held_back_waits_for_no_worker(found: JobState) -> None:
    assert nobody_can_run(JOB, found, {}) is None


def test_the_end_of_the_last_worker_is_told_once_per_outage() -> None:
    wait = Wait(None)
    assert [wait.look(error, 0.0) for error in (None, NOBODY, NOBODY, None, None, NOBODY)] == [
        "", LEFT_ALONE, "", "", "", LEFT_ALONE,
    ]  # fmt: skip
    assert not wait.is_over(NOBODY, 1e9), "it waits for ever"


def test_a_job_that_nobody_ever_could_run_is_given_up_in_time() -> None:
    wait = Wait(30.0)
    assert wait.look(LACKS, 10.0) == "no live worker can run it: w1 lacks tag big; it is queued and waits 20 s for one that can"
    assert [wait.is_over(LACKS, now) for now in (29.9, 30.0)] == [False, True]
    assert not wait.is_over(None, 31.0)
    wait.look(None, 25.0)
    assert not wait.is_over(LACKS, 99.0), "one that could is waited for"
    assert wait.look(LACKS, 99.0) == LEFT_ALONE


def test_results_that_wait_are_told_of_once_for_all_of_an_outage() -> None:
    told: list[str] = []
    kept = KeptResults(told.append)
    kept.hear(Waits(3, "w1", "the blob Redis is full"))
    kept.hear(Waits(4, "w2", "the blob Redis is full"))
    assert told == ["results wait on their workers, and nothing runs again for it: the blob Redis is full"]
    kept.hear(Waits(3, "w1", ""))
    kept.hear(Waits(5, "w1", "the blob Redis is full"))
    assert len(told) == 1
    kept.hear(Waits(4, "w2", ""))
    kept.hear(Waits(5, "w1", ""))
    kept.hear(Waits(6, "w1", "the blob Redis is away"))
    assert len(told) == 2 and told[1].endswith("the blob Redis is away")
