"""The answer to a submission is lost: the same job is submitted again, with what it goes on with."""
from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.collector.collect import Collector, CollectorOptions
from distributed_comfy.collector.spool import SPOOL_FOLDER, Spool, SpoolManifest, spool_folder
from distributed_comfy.comfyui import job_entry
from distributed_comfy.comfyui.accepted import AcceptedPrompt
from distributed_comfy.comfyui.alone import open_alone
from distributed_comfy.comfyui.job_entry import Entered, JobEntry, JobPlaces
from distributed_comfy.comfyui.keeping import JobKeeper
from distributed_comfy.comfyui.lanes import Lanes
from distributed_comfy.errors import RedisUnreachable
from distributed_comfy.orchestrator.ownership import Ownership
from tests.cluster_rig import Rig
from tests.prompts import node, out

pytestmark = pytest.mark.redis

ITEMS = 3
PROMPT = {
    "seed": node("DistributedSeed", seed=100),
    "image": node("RuleImage", seed=out("seed"), width=16, height=16, batch_size=1, channels=3),
    "9": node("DistributedCollector", images=out("image"), items=ITEMS),
    "show": node("RuleRecord", images=out("9"), label="lost"),
}


class Host:
    """A ComfyUI, as far as a submission looks at it."""

    cannot_add_nodes = ""
    user_folder = None

    def __init__(self, folder: Path) -> None:
        self.folders = dict.fromkeys(("input", "output", "temp"), folder)


@pytest.fixture
def places(builtin_rig: Rig, tmp_path: Path) -> JobPlaces:
    host: Any = Host(tmp_path)
    cluster = builtin_rig.cluster
    return JobPlaces(
        host, lambda timeout_s: cluster, tmp_path / "jobs", "0", lambda: False, open_alone(cluster.settings), JobKeeper(), Lanes(), Any
    )  # fmt: skip


def enter(places: JobPlaces) -> Entered:
    """The job of the prompt, in the table."""
    return JobEntry(AcceptedPrompt("1", PROMPT, PROMPT, ("show",)), places, threading.Event()).enter()


def collect_and_leave(entered: Entered, folder: Path) -> None:
    """All of it is finished when its prompt fails, so the spool stays."""
    record = entered.queued.record
    spool = Spool(spool_folder(folder, record.job_id), SpoolManifest(record.job_id, record.resume_key))
    with Ownership(entered.cluster, record.job_id, entered.queued.owner):
        Collector(record, entered.cluster.jobs, entered.cluster.blobs, spool, CollectorOptions()).run()
    entered.cluster.jobs.settle(record.job_id)
    entered.cluster.jobs.disown(record.job_id, entered.queued.owner)
    spool.mark_ended()
    spool.close()


class LosesAnswers:
    """A table that does what it is told, and of whose first answers to `submit` nothing is heard."""

    def __init__(self, jobs: Any, answers: int) -> None:
        self._jobs = jobs
        self._left = answers
        self.submitted: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jobs, name)

    def submit(self, submission: Any, owner: str) -> None:
        self.submitted.append((submission.record.job_id, owner))
        self._jobs.submit(submission, owner)
        if self._left:
            self._left -= 1
            raise RedisUnreachable(url="redis://x", reason="the answer was lost", setting="DC_REDIS_URL")


@pytest.mark.parametrize("answers", [1, 2])
def test_a_job_whose_submission_was_not_answered_keeps_its_id_its_owner_and_what_it_goes_on_with(
    places: JobPlaces, builtin_rig: Rig, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    monkeypatch.setattr(job_entry, "PAUSE_S", 0.05)
    jobs = builtin_rig.cluster.jobs
    collect_and_leave(enter(places), places.folder)
    before = set(jobs.jobs())
    table = LosesAnswers(jobs, answers)
    losing: Any = replace(builtin_rig.cluster, jobs=table)  # type: ignore[arg-type]
    entered = enter(replace(places, cluster=lambda timeout_s: losing))
    record, resumed = entered.queued.record, entered.queued.resumed
    assert table.submitted == [(record.job_id, entered.queued.owner)] * (1 + answers)
    assert set(jobs.jobs()) - before == {record.job_id} and jobs.owner(record.job_id) == entered.queued.owner
    assert resumed is not None and resumed.spool.items() == [0, 1, 2] and jobs.job_state(record.job_id).state == "done"
    assert builtin_rig.executions(record.job_id) == [], "nothing runs again"
    resumed.spool.close()


def test_where_no_answer_comes_at_all_the_work_waits_for_the_next_who_asks(
    places: JobPlaces, builtin_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_entry, "PAUSE_S", 0.05)
    monkeypatch.setattr(job_entry, "SUBMIT_S", 0.3)
    collect_and_leave(enter(places), places.folder)
    table = LosesAnswers(builtin_rig.cluster.jobs, 10_000)
    losing: Any = replace(builtin_rig.cluster, jobs=table)  # type: ignore[arg-type]
    entered = enter(replace(places, cluster=lambda timeout_s: losing))
    assert entered.cluster is places.alone and entered.queued.resumed is None, "it has no workers with this engine"
    ((job_id, owner),) = set(table.submitted)
    builtin_rig.cluster.jobs.disown(job_id, owner)  # as after its lease
    resumed = enter(places).queued.resumed
    assert resumed is not None and resumed.job_id == job_id and resumed.spool.items() == [0, 1, 2]
    assert len(list((places.folder / SPOOL_FOLDER).iterdir())) == 1
    resumed.spool.close()
