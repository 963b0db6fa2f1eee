"""Ending everything from the page: the prompts of this ComfyUI first, whatever becomes of the cluster."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from distributed_comfy.errors import ClusterUnavailable, JobsNotEnded, JobStateInvalid, RedisUnreachable
from distributed_comfy.panel.job_orders import JobOrders
from distributed_comfy.panel.place import Place
from distributed_comfy.panel.words import status_of, told
from distributed_comfy.state.records import JobState

COUNTS = dict.fromkeys(("total", "pending", "running", "done", "failed"), 1)
AWAY = RedisUnreachable(url="redis://pc1", reason="connection refused", setting="DC_REDIS_URL")


class Master:
    """A ComfyUI with three prompts, one of which is a job."""

    def __init__(self) -> None:
        self.ended = 0

    def jobs(self) -> list[str]:
        return [] if self.ended else ["mine"]

    def interrupt(self, job_id: str | None) -> int:
        assert job_id is None
        self.ended += 3
        return 3


class Jobs:
    """The table, with a job of this master and one of somebody else."""

    def __init__(self, master: Master) -> None:
        self.cancelled: list[str] = []
        self._master = master

    def jobs(self) -> dict[str, JobState]:
        assert self._master.ended, "prompts wait for no server"
        return {name: JobState("running", submitter=name, counts=COUNTS) for name in ("mine", "theirs")}

    def cancel(self, job_id: str, _reason: str) -> None:
        if job_id == "mine":
            raise JobStateInvalid(job_id=job_id, state="cancelled", order="cancel", needed="a job that has not ended")
        self.cancelled.append(job_id)


def orders(master: Master | None, jobs: Any, error: Exception | None = None) -> JobOrders:
    def cluster() -> Any:
        if error is not None:
            raise error
        return SimpleNamespace(jobs=jobs)

    return JobOrders(cast("Place", SimpleNamespace(master=master, cluster=cluster, settings=SimpleNamespace(submitter="theirs"))))


@pytest.mark.parametrize("what", ["mine", "all"])
def test_prompts_of_a_comfyui_are_ended_while_redis_is_away_and_it_is_said_what_was_not(what: str) -> None:
    master = Master()
    with pytest.raises(JobsNotEnded) as failed:
        orders(master, None, AWAY).interrupt(what, "")
    assert master.ended == 3 and failed.value.fields["prompts"] == 3
    shown = told(failed.value)
    assert status_of(failed.value) == 503 and shown["remedy"]
    assert "ended: 3" in shown["message"] and "connection refused" in shown["message"]


def test_without_a_comfyui_it_is_the_server_that_is_said_to_be_away() -> None:
    with pytest.raises(ClusterUnavailable) as failed:
        orders(None, None, AWAY).interrupt("all", "")
    assert failed.value is AWAY


def test_all_and_mine_end_prompts_and_then_jobs() -> None:
    for what, ended in (("mine", []), ("all", ["theirs"])):
        master = Master()
        jobs = Jobs(master)
        assert orders(master, jobs).interrupt(what, "") == {"jobs": ended, "prompts": 3, "refused": {}}
        assert jobs.cancelled == ended
