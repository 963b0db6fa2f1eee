"""What a worker tells about its items: begun, stepping, shipping, over; counters and the last error."""
from __future__ import annotations

import time

from distributed_comfy.engine.protocol import Progress
from distributed_comfy.errors import EngineDied, NodeFailed, OutOfMemory
from distributed_comfy.messages import Prompt, RunRequest
from tasks.activity import WorkerActivity

JOB = "3f9a12bc77d0"
PROMPT: Prompt = {"1": {"class_type": "KSampler", "inputs": {}}, "2": {"class_type": "DistributedSink", "inputs": {}}}
ORIGINAL: Prompt = {**PROMPT, "2": {"class_type": "DistributedCollector", "inputs": {}}}


def request(claim: str, index: int = 4) -> RunRequest:
    return RunRequest(claim, JOB, index, "generate", PROMPT, ("2",), ORIGINAL, attempt=2)


def clock(at: float) -> int:
    return round(at * 1000)


def activity() -> tuple[WorkerActivity, list[int]]:
    changes: list[int] = []
    return WorkerActivity(lambda: changes.append(1)), changes


def test_an_item_is_shown_from_its_beginning_to_its_end() -> None:
    told, changes = activity()
    before = clock(time.monotonic())
    told.begin(request("c1"))
    item = told.items(clock)[0]
    assert (item.item, item.kind, item.attempt, item.node_id) == (f"{JOB}-4", "generate", 2, "")
    assert before <= item.started_ms <= clock(time.monotonic())
    told.step(Progress("c1", "1", 3, 20))
    item = told.items(clock)[0]
    assert (item.node_id, item.node_class, item.value, item.maximum, item.shipping) == ("1", "KSampler", 3, 20, False)
    told.ship("c1")
    assert told.items(clock)[0].shipping and not told.items(clock)[0].waits
    told.wait("c1", "the blob Redis\nis full")
    assert told.items(clock)[0].waits == "the blob Redis is full"
    told.wait("c1", "")
    assert not told.items(clock)[0].waits
    told.end("c1")
    assert told.items(clock) == () and len(changes) == 5, "a step is no change of state"


def test_the_users_node_stands_for_ours_and_one_that_the_prompt_lacks_has_no_class() -> None:
    told, _ = activity()
    told.begin(request("c1"))
    told.step(Progress("c1", "2", 0, 1))
    assert told.items(clock)[0].node_class == "DistributedCollector"
    told.step(Progress("c1", "7.0.1", 0, 1))
    assert told.items(clock)[0].node_class == ""


def test_a_ticket_without_work_changes_nothing() -> None:
    told, changes = activity()
    told.end("c9")
    told.step(Progress("c9", "1", 3, 20))
    told.ship("c8")
    assert told.items(clock) == () and len(changes) <= 1


def test_two_items_are_two() -> None:
    told, _ = activity()
    told.begin(request("c1", 1))
    told.begin(request("c2", 2))
    told.end("c1")
    assert [item.item for item in told.items(clock)] == [f"{JOB}-2"]


def test_what_is_done_and_what_failed_is_counted_and_the_last_error_kept_in_short() -> None:
    told, _ = activity()
    assert told.counts() == (0, 0) and told.last_error(clock) is None
    told.done()
    told.done()
    told.failed(OutOfMemory(device="cuda:0", node_id="1", exception_message="no"), f"{JOB}-1")
    long = NodeFailed(node_id="1", class_type="K", exception_type="E", exception_message="line\n" * 200, traceback="")
    told.failed(long, f"{JOB}-2")
    error = told.last_error(clock)
    assert told.counts() == (2, 2)
    assert error is not None and (error.code, error.item) == (long.code, f"{JOB}-2")
    assert len(error.words) == 300 and "\n" not in error.words and error.words.endswith("…")
    told.trouble(OutOfMemory(device="cuda:0", node_id="1", exception_message="line\n" * 200))
    assert (found := told.last_error(clock)) and len(found.words) < 320 and found.words.endswith("…; ask for a smaller batch_size or "
        "smaller images, give the worker --lowvram, or run it where there is more memory")  # fmt: skip
    assert (told.last_error(clock) or error).item == "" and told.counts() == (2, 2)


def test_an_engine_that_dies_with_an_item_is_one_error_and_not_two() -> None:
    told, _ = activity()
    died = EngineDied(status="signal 9 (SIGKILL)", log_tail="last\nwords")
    told.failed(died, f"{JOB}-1")
    told.trouble(died)
    error = told.last_error(clock)
    assert error is not None and error.item == f"{JOB}-1" and "its last lines: last words; look into its log" in error.words
