"""A cancel at each stage of a job's life: within two seconds the job has ended and its workers are free, with the engines they had.

That ComfyUI's models stay loaded is shown in ``tests/comfyui/test_cluster_failures.py``.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
from PIL import Image

from distributed_comfy.errors import JobCancelled
from distributed_comfy.messages import Prompt
from tests.cluster_rig import Rig, RunningJob, WorkerProcess
from tests.command_line import pictures, until
from tests.partition_proxy import PartitionProxy, network_to
from tests.prompts import node, out

pytestmark = [pytest.mark.redis, pytest.mark.timeout(240)]

LIMIT_S = 2.0
STEPS = 10_000
"""Of an item that does not end by itself."""
LAST_STEPS, STEP_MS = 60, 100
"""Of a last stage: three times as long as a cancel may take."""


def with_last_stage() -> Prompt:
    """Items that take no time, and a last stage that takes some."""
    prompt, last = pictures(), "collect"
    for step in range(LAST_STEPS):
        prompt[f"slow{step}"] = node("RuleStep", images=out(last), milliseconds=STEP_MS)
        last = f"slow{step}"
    prompt["save"] = node("SaveImage", images=out(last), filename_prefix="last")
    return prompt


def endless() -> Prompt:
    return pictures(steps=STEPS, width=256, height=256)


def is_claimed(rig: Rig, job: RunningJob) -> bool:
    return any(item.state == "running" for item in rig.cluster.jobs.item_states(job.queued()).values())


def is_in_a_step(rig: Rig, job: RunningJob) -> bool:
    return any(step.value > 2 for step in job.report.steps)


def is_in_its_last_stage(rig: Rig, job: RunningJob) -> bool:
    return len(job.report.arrived) == 2 and is_claimed(rig, job)


STAGES: dict[str, tuple[Callable[[], Prompt], Callable[[Rig, RunningJob], bool]]] = {
    "pending": (endless, lambda rig, job: True),
    "claimed": (endless, is_claimed),
    "in a step": (endless, is_in_a_step),
    "in the last stage": (with_last_stage, is_in_its_last_stage),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("by", ["its owner", "somebody else"])
def test_a_cancel_ends_job_and_work_at_once_and_no_engine(builtin_rig: Rig, stage: str, by: str) -> None:
    prompt, reached = STAGES[stage]
    engines = warm_up(builtin_rig)
    if stage == "pending":
        drain(builtin_rig, True)
    try:
        job = builtin_rig.begin(prompt(), items=2)
        job_id = job.queued()
        job.until(lambda: reached(builtin_rig, job))
        began = time.monotonic()
        if by == "its owner":
            job.stop.set()
        else:
            builtin_rig.cluster.jobs.cancel(job_id, "enough")
        assert isinstance(job.wait().error, JobCancelled)
        if stage != "pending":
            until(builtin_rig.is_idle, timeout_s=20)
        assert time.monotonic() - began < LIMIT_S
    finally:
        drain(builtin_rig, False)
    assert warm_up(builtin_rig, 30) == engines, "no engine was started anew, and none samples still"
    assert not list(builtin_rig.cluster.blob_client.scan_iter(f"*{job_id}*"))


def warm_up(rig: Rig, timeout_s: float = 60) -> dict[str, int]:
    """Let each worker make a picture, in its engine's process: while the others take nothing, it must."""
    engines = {}
    for name in rig.workers:
        others = [other for other in rig.workers if other != name]
        for other in others:
            rig.cluster.jobs.drain(other, True)
        try:
            report = rig.begin(pictures(), items=1).wait(timeout_s)
        finally:
            for other in others:
                rig.cluster.jobs.drain(other, False)
        assert report.done.error is None and report.done.results[0].worker == name
        ((_, _, engines[name]),) = rig.executions(report.job_id)
    until(rig.is_idle, timeout_s=20)
    return engines


@dataclass(frozen=True)
class Distant:
    """A worker whose way to the blobs can stop."""

    rig: Rig
    process: WorkerProcess
    blobs: PartitionProxy
    input: Path

    def begin(self, picture: str) -> RunningJob:
        """A job for this worker, with a picture of this name that no worker has seen."""
        pixels = numpy.random.default_rng(abs(hash(picture))).integers(256, size=(64, 64, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(self.input / picture)
        prompt = {"load": node("LoadImage", image=picture), "save": node("SaveImage", images=out("load"), filename_prefix="x")}
        return self.rig.begin(prompt, items=1, tags=("distant",), folders={"input": self.input})

    def says(self, job: RunningJob, what: str) -> bool:
        """Whether the worker's log has this about the job's item."""
        return f"item {job.queued()}-0 {what}" in self.process.log()


@pytest.fixture(scope="module")
def distant(builtin_rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Distant]:
    with network_to(builtin_rig.cluster.blob_url) as blobs:
        process = builtin_rig.start("distant", blob_url=blobs.url, worker_tags="distant")[0]
        yield Distant(builtin_rig, process, blobs, tmp_path_factory.mktemp("input"))
        builtin_rig.stop("distant")


@pytest.mark.parametrize("by", ["its owner", "somebody else"])
def test_a_cancel_while_an_input_file_is_on_its_way_ends_job_and_work_at_once(distant: Distant, by: str) -> None:
    rig, picture = distant.rig, f"{by}.png"
    distant.blobs.stop()
    try:
        job = distant.begin(picture)
        job.until(lambda: distant.says(job, "starts"))
        began = time.monotonic()
        if by == "its owner":
            job.stop.set()
        else:
            rig.cluster.jobs.cancel(job.queued(), "enough")
        assert isinstance(job.wait().error, JobCancelled)
        until(lambda: distant.says(job, "is given back"), timeout_s=20)
        assert time.monotonic() - began < LIMIT_S
        assert not rig.executions(job.queued()), "no engine has seen the item"
        another = rig.begin(pictures(), items=1, tags=("distant",))
        another.until(lambda: rig.executions(another.queued()), timeout_s=5)
    finally:
        distant.blobs.go_on()
    assert another.wait(30).done.error is None
    assert distant.begin(picture).wait(30).done.error is None, "what was given up is in nobody's way"


def drain(rig: Rig, drained: bool) -> None:
    for name in rig.workers:
        rig.cluster.jobs.drain(name, drained)


def test_a_cancel_while_the_pictures_are_saved_is_not_waited_for(builtin_rig: Rig) -> None:
    job = builtin_rig.begin(pictures(width=512, height=512, batch_size=4, steps=1), items=8)
    job.queued()
    job.until(lambda: len(job.report.arrived) >= 6)
    began = time.monotonic()
    job.stop.set()
    report = job.wait()
    assert time.monotonic() - began < LIMIT_S
    assert report.delivery is not None
    saved = sorted(path.name for path in report.out.glob("*.png"))
    assert saved
    for path in report.out.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()  # raises where the file is cut off
