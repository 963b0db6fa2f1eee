"""The job of a prompt, before anything of it is on a server."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.comfyui.accepted import AcceptedPrompt
from distributed_comfy.comfyui.job_entry import JobPlaces
from distributed_comfy.comfyui.keeping import JobKeeper
from distributed_comfy.comfyui.lanes import Lanes
from distributed_comfy.comfyui.master_job import MasterJob, is_cancelled
from distributed_comfy.comfyui.queue_watch import Ending
from tests.command_line import until
from tests.prompts import txt2img


def job() -> MasterJob:
    def cluster(timeout_s: float) -> Any:
        raise AssertionError("asked for the cluster")

    places: Any = SimpleNamespace(cluster=cluster, keeper=JobKeeper(), lanes=Lanes(), workers_starting=lambda cluster: ())
    assert set(vars(places)) <= set(JobPlaces.__dataclass_fields__)
    return MasterJob(AcceptedPrompt("1", txt2img(), txt2img(), ("save",)), places)


def test_a_node_that_asks_for_a_cancelled_job_hears_that_it_is_and_nothing_is_queued() -> None:
    found = job()
    found.cancel("of a test")
    found.start()
    until(lambda: found.phase == "failed")
    assert is_cancelled(found.error)


def test_an_interrupt_waits_for_no_lock_and_ends_a_job_once() -> None:
    found = job()
    with found._changing:  # as while servers that are away are told to send progress
        found.interrupt()
        found.interrupt()
        assert found.interrupted
    until(lambda: found._reason == "its prompt is interrupted")
    found.start()
    until(lambda: found.phase == "failed")
    assert is_cancelled(found.error)


def test_a_prompt_that_is_over_before_its_turn_queues_nothing() -> None:
    found = job()
    found.end("gone")
    found.enter()
    found.start()
    assert found.phase == "failed" and is_cancelled(found.error) and found.job_id == ""


@pytest.mark.parametrize(
    ("ending", "reason"),
    [("interrupted", "its prompt is interrupted"), ("error", "its prompt has failed"), ("gone", "its prompt has left the queue")],
)
def test_the_table_is_told_how_the_prompt_ended(ending: Ending, reason: str) -> None:
    found = job()
    found.end(ending)
    assert found._reason == reason and found.ending == ending
