"""What a node says, and what the log says, while no live worker can run its job."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.comfyui import other_workers
from distributed_comfy.comfyui.alone import open_alone
from distributed_comfy.comfyui.other_workers import OtherWorkers
from distributed_comfy.comfyui.progress import JobProgress
from distributed_comfy.errors import ConnectionLost
from distributed_comfy.messages import Capability
from distributed_comfy.settings import read_settings
from tests.state_cluster import Job, submission

LACKS = "this ComfyUI lacks model 'big.safetensors' (item 2)"


class Waiting:
    """A job that a node waits for."""

    def __init__(self, others: OtherWorkers, job_id: str = "0123456789ab") -> None:
        self.others = others
        self.cluster = open_alone(read_settings())
        self.starting: tuple[str, ...] = ()
        self.job: Any = SimpleNamespace(progress=JobProgress(), workers_starting=lambda cluster: self.starting)
        record = submission(job_id, Job(needs=("Sampler",))).record
        self.job.progress.begin(record)
        self.running: Any = SimpleNamespace(cluster=self.cluster, record=record)

    def look(self, here: str = "", stuck: bool = False) -> str:
        """What is shown, after a new look at the workers."""
        self.can_run(here, stuck)
        return self.shown

    def can_run(self, here: str = "", stuck: bool = False) -> bool:
        """Whether others can, after a new look at the workers."""
        self.others._found.clear()
        return self.others.can_run(self.job, self.running, here, stuck)

    @property
    def shown(self) -> str:
        return str(self.job.progress.look().text)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", "distributed_comfy.comfyui.other_workers")
    return caplog


def test_a_node_waits_aloud_where_this_comfyui_cannot_take_what_is_left(said: pytest.LogCaptureFixture) -> None:
    waiting = Waiting(OtherWorkers())
    waits = f"0 of 1 items; waiting: no live worker can run it, and {LACKS}; start one that can, or interrupt"
    assert waiting.look(LACKS, stuck=False) == "0 of 1 items", "it still makes others"
    assert waiting.look(LACKS, stuck=True) == waits
    assert said.messages == [f"job 0123456789ab: no live worker can run it, and {LACKS}; it waits for one"]
    assert waiting.look() == "0 of 1 items", "all that it lacked is here"


def test_who_lacks_what_is_told_and_a_worker_that_can_ends_the_wait() -> None:
    waiting = Waiting(OtherWorkers())
    waiting.cluster.matching.live = lambda: {"pc2": Capability("builtin", "1", ("Other",))}  # type: ignore[method-assign]
    assert f"(pc2 lacks node class Sampler), and {LACKS}; start one" in waiting.look(LACKS, stuck=True)
    waiting.cluster.matching.live = lambda: {"pc2": Capability("builtin", "1", ("Sampler",))}  # type: ignore[method-assign]
    assert waiting.look(LACKS, stuck=True) == "0 of 1 items"
    assert waiting.others.can_run(waiting.job, waiting.running, LACKS, True)


def test_that_this_comfyui_runs_all_is_said_once_and_of_no_job_that_waits(said: pytest.LogCaptureFixture) -> None:
    others = OtherWorkers()
    Waiting(others, "waits0123456").look(LACKS, stuck=True)
    Waiting(others, "first0123456").look()
    Waiting(others, "other0123456").look()
    assert [line[:16] for line in said.messages if "runs all of it" in line] == ["job first0123456"]
    assert len(said.messages) == 2


def test_another_reason_why_this_comfyui_runs_all_is_said_again(said: pytest.LogCaptureFixture) -> None:
    others = OtherWorkers()
    Waiting(others, "first0123456").look()
    live = Waiting(others, "other0123456")
    live.cluster.matching.live = lambda: {"pc2": Capability("builtin", "1", ("Other",))}  # type: ignore[method-assign]
    live.look()
    lines = [line for line in said.messages if "runs all of it" in line]
    assert len(lines) == 2 and "(pc2 lacks node class Sampler)" in lines[1]


def test_a_blob_server_that_is_away_is_told_and_what_is_known_of_workers_stays() -> None:
    waiting = Waiting(OtherWorkers())
    there = waiting.cluster.blobs.exists

    def away(blobs: object) -> list[bool]:
        raise ConnectionLost(target="the blob Redis at here:1", reason="refused")

    waiting.cluster.blobs.exists = away  # type: ignore[method-assign]
    assert "waiting: lost the connection to the blob Redis at here:1: refused" in waiting.look()
    assert not waiting.others.can_run(waiting.job, waiting.running, "", False)
    waiting.cluster.blobs.exists = there  # type: ignore[method-assign]
    assert waiting.look() == "0 of 1 items"


def test_a_worker_that_starts_is_waited_for_and_said_once(said: pytest.LogCaptureFixture) -> None:
    waiting = Waiting(OtherWorkers())
    waiting.starting = ("pc1-cpu",)
    assert waiting.can_run() and waiting.can_run()
    assert waiting.shown == "0 of 1 items; waiting for pc1-cpu to start"
    assert said.messages == ["job 0123456789ab: no live worker can run it yet; pc1-cpu has up to 90 s to start"]
    waiting.cluster.matching.live = lambda: {"pc1-cpu": Capability("builtin", "1", ("Sampler",))}  # type: ignore[method-assign]
    assert waiting.look() == "0 of 1 items"


def test_a_worker_that_ends_before_it_has_joined_is_waited_for_no_more() -> None:
    waiting = Waiting(OtherWorkers())
    waiting.starting = ("pc1-cpu",)
    assert waiting.can_run()
    waiting.starting = ()
    assert not waiting.can_run() and waiting.shown == "0 of 1 items"


def test_one_that_takes_too_long_to_start_is_waited_for_by_no_job() -> None:
    others = OtherWorkers()
    waiting, later = Waiting(others), Waiting(others, "later0123456")
    waiting.starting = later.starting = ("pc1-cpu",)
    assert waiting.can_run()
    others._starting["pc1-cpu"] -= other_workers.STARTING_S
    assert not waiting.can_run() and not later.can_run()
