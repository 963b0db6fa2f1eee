"""The cluster of a ComfyUI alone keeps the rules of a table, for the one who works."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.comfyui.alone import open_alone
from distributed_comfy.comfyui.other_workers import why_nobody
from distributed_comfy.errors import JobUnknown, OutOfMemory
from distributed_comfy.messages import ItemResult, ItemSpec
from distributed_comfy.settings import read_settings
from distributed_comfy.state.jobs import FinishedItem
from distributed_comfy.state.records import Claim
from distributed_comfy.state.specs import unpack_spec
from tests.state_cluster import Job, submission

JOB = "0123456789ab"
RESULT = ItemResult((), (), "pc1-master", "cpu", "comfyui", 0.1)
MEMORY = OutOfMemory(device="cpu", node_id="3", class_type="Sampler", exception_type="E", exception_message="", traceback="")


def cluster(**job: Any) -> Any:
    """With one job."""
    found = open_alone(read_settings())
    found.jobs.submit(submission(JOB, Job(**job)), "me")
    return found


def claim(found: Any, claim_id: str) -> Claim | None:
    taken: Claim | None = found.workers.claim("pc1-master", "one", claim_id, JOB)
    return taken


def give_back(found: Any, taken: Claim | None, how: str, error: Exception | None = None) -> str:
    return str(found.workers.give_back("pc1-master", "one", taken, how, error))


def test_no_worker_can_run_its_jobs_and_none_lacks_anything() -> None:
    running: Any = SimpleNamespace(cluster=cluster(), record=submission(JOB, Job()).record)
    assert why_nobody(running) == "no live worker can run it"


def test_items_are_taken_in_order_and_the_last_one_ends_the_job() -> None:
    found = cluster(items=2)
    first, second = claim(found, "a"), claim(found, "b")
    assert first is not None and second is not None and claim(found, "c") is None
    _, templates = found.jobs.prompts(JOB)
    assert [unpack_spec(templates, one.index, one.packed_spec).seed for one in (first, second)] == [str(2**63), str(2**63 + 1)]
    assert found.workers.complete("pc1-master", "one", first, RESULT) and found.jobs.job_state(JOB).state != "done"
    assert found.workers.complete("pc1-master", "one", second, RESULT) and found.jobs.job_state(JOB).state == "done"
    found.jobs.settle(JOB)
    with pytest.raises(JobUnknown):
        found.jobs.job_state(JOB)
    assert claim(found, "d") is None and give_back(found, second, "release") == "lost"


def test_what_an_earlier_table_had_finished_does_not_run_again() -> None:
    found = open_alone(read_settings())
    whole = submission(JOB, Job(items=3))
    there = type(whole)(
        whole.record, whole.specs, whole.prompts, whole.signature, finished=[FinishedItem(0, "x", RESULT), FinishedItem(2, "y", RESULT)]
    )
    found.jobs.submit(there, "me")
    found.jobs.submit(whole, "me")  # the same id again changes nothing
    taken = claim(found, "a")
    assert taken is not None and taken.index == 1 and claim(found, "b") is None


def test_an_item_that_needs_too_much_memory_fails_in_the_end_and_one_that_lacks_something_at_once() -> None:
    found = cluster(items=1)
    limit = read_settings().max_attempts
    answers = [give_back(found, claim(found, f"claim{number}"), "retry", MEMORY) for number in range(limit)]
    assert answers == ["ok"] * (limit - 1) + ["failed"]
    assert found.jobs.job_state(JOB).state == "failed" and found.jobs.item_states(JOB)[0].error["code"] == MEMORY.code
    lacking = cluster(items=1)
    assert give_back(lacking, claim(lacking, "a"), "release") == "failed"
    assert lacking.jobs.item_states(JOB)[0].error["code"] == "only_workers_have"


def test_the_item_that_prepares_for_tiles_and_tiles_wait_until_they_are_unblocked() -> None:
    found = cluster(items=1, prepare=True, grows=True)
    taken = claim(found, "a")
    assert taken is not None and found.workers.complete("pc1-master", "one", taken, RESULT)
    assert claim(found, "b") is None
    found.jobs.unblock(JOB, [(1, "fed")])
    prepare = claim(found, "c")
    assert prepare is not None and prepare.index == 1 and found.jobs.feed(JOB, 1) == "fed"
    assert found.workers.complete("pc1-master", "one", prepare, RESULT)
    assert found.jobs.extend(JOB, [ItemSpec(2, "tile", "p", ("9",))], final=True)
    assert claim(found, "d") is None and found.jobs.job_state(JOB).state != "done"
    found.jobs.unblock(JOB, [(2, "crop")])
    tile = claim(found, "e")
    assert tile is not None and tile.index == 2


def test_nothing_is_left_to_workers_where_there_are_none() -> None:
    """Whoever lacks something for an item gives it back, which tells the user at once."""
    found = cluster(items=2)
    taken = found.workers.claim("pc1-master", "one", "a", JOB, leaves=(0, 1))
    assert taken.index == 0
