"""A job through the cpu profile of docker-compose.yml, with containers killed and stopped under it."""
from __future__ import annotations

import io
import time
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image

from tests.compose.stack import Job, Stack, wait_for

ITEMS = 6
# Some seconds for each item, so that there is a middle to kill it in.
SLOW = ("--items", str(ITEMS), "--set", "2.steps=40")
GRACE_S = 40.0
ENDLESS_STEPS = 5000


def pictures(files: dict[str, bytes]) -> list[NDArray[Any]]:
    """Pixels of the saved pictures, in the order of their names."""
    return [numpy.asarray(Image.open(io.BytesIO(files[name]))) for name in sorted(files) if name.endswith(".png")]


def container_at_work(stack: Stack, job: Job) -> str:
    """A container that runs an item of the job that was just submitted."""

    def found() -> list[str]:
        assert job.process.poll() is None, job.process.communicate()
        return stack.busy_workers()

    return stack.container_of(wait_for(found, "a busy worker", 60)[0])


def ended_in_time(stack: Stack, container: str) -> bool:
    """True if its program ended by itself, instead of being killed when its time was over."""
    return bool(stack.inspect(container)["State"]["ExitCode"] == 0)


def items_of(stack: Stack, result: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """`jobs show`: seed items by index."""
    shown = stack.ours("jobs", "show", result["job"])
    return {item["index"]: item for item in shown["items"] if item["kind"] != "last"}


def listed_by_flower(stack: Stack, result: dict[str, Any]) -> list[int]:
    """Items of a job that is done, as Flower lists them: each must have its node class, and all but the lost ones must be successes."""

    def settled() -> list[dict[str, Any]]:
        tasks = stack.flower_tasks(result["job"])
        return tasks if sum(task["state"] == "SUCCESS" for task in tasks) == ITEMS + 1 else []

    tasks = wait_for(settled, "every item in Flower", 30)
    for task in tasks:
        is_last = task["kwargs"]["item"] == ITEMS
        assert task["kwargs"]["node_class"] == task["name"] == ("SaveImage" if is_last else "SeededGenerator")
        assert task["state"] in ("SUCCESS", "STARTED")
    return sorted(task["kwargs"]["item"] for task in tasks)


def test_a_job_is_complete_and_the_same_although_a_worker_is_killed_in_the_middle(stack: Stack) -> None:
    undisturbed = stack.submit("undisturbed", *SLOW).result()
    assert [item["index"] for item in undisturbed["items"]][:ITEMS] == list(range(ITEMS))
    assert len({item["worker"] for item in undisturbed["items"][:ITEMS]}) == 2

    job = stack.submit("disturbed", *SLOW)
    stack.container("kill", container_at_work(stack, job))
    disturbed = job.result()

    assert [item["index"] for item in disturbed["items"]][:ITEMS] == list(range(ITEMS))
    attempts = {index: item["failed_attempts"] for index, item in items_of(stack, disturbed).items()}
    assert sum(attempts.values()) == 1, f"the worker was killed in the middle of exactly one item: {attempts}"
    (killed,) = [index for index, count in attempts.items() if count]
    assert listed_by_flower(stack, undisturbed) == [*range(ITEMS), ITEMS]
    assert listed_by_flower(stack, disturbed) == sorted([*range(ITEMS), ITEMS, killed])
    expected, found = pictures(stack.files("undisturbed")), pictures(stack.files("disturbed"))
    assert len(expected) == len(found) == ITEMS
    for before, after in zip(expected, found, strict=True):
        numpy.testing.assert_array_equal(before, after)
    assert len({image.tobytes() for image in found}) == ITEMS, "every seed has a picture of its own"


def test_a_worker_that_is_stopped_in_the_middle_ends_in_time_and_its_item_counts_no_failure(stack: Stack) -> None:
    job = stack.submit("stopped", *SLOW)
    container = container_at_work(stack, job)
    started = time.monotonic()
    stack.container("stop", "-t", str(int(GRACE_S)), container, timeout_s=GRACE_S + 30)
    seconds = time.monotonic() - started
    assert seconds < GRACE_S and ended_in_time(stack, container)
    result = job.result()
    assert {index: item["failed_attempts"] for index, item in items_of(stack, result).items()} == dict.fromkeys(range(ITEMS), 0)
    assert len(pictures(stack.files("stopped"))) == ITEMS


def test_nothing_of_a_job_is_left_in_the_servers(stack: Stack) -> None:
    result = stack.submit("tidy", "--items", "2", "--set", "2.steps=1").result()
    assert stack.server("redis-blobs", "DBSIZE") == ["0"], stack.server("redis-blobs", "KEYS", "*")
    states = {entry["job"]: entry["state"] for entry in stack.ours("jobs", "list")}
    assert states[result["job"]] == "done"
    assert set(states.values()) == {"done"}
    names = {worker["name"] for worker in stack.workers()}
    assert len(names) == 2
    keys = stack.server("redis-state", "KEYS", "*")
    own = [key for key in keys if key.startswith("dc:worker:")]
    assert all(key.split(":")[2] in names for key in own), f"keys of workers that are gone: {own}"
    unfinished = ("runs", "pending", "back", "finish", "owner")
    assert [key for key in keys if key.startswith("dc:job:") and key.rpartition(":")[2] in unfinished] == []


def test_what_the_state_server_knew_is_there_after_it_was_killed(stack: Stack) -> None:
    result = stack.submit("kept", "--items", "2", "--set", "2.steps=1").result()
    time.sleep(1.5)  # the append-only file is synced every second
    (server,) = stack.containers("redis-state")
    stack.container("kill", server)
    for container in (*stack.containers("worker-cpu"), *stack.containers("flower")):
        assert wait_for(lambda container=container: not stack.is_healthy(container), "unhealthy without the server", 60)
    stack.start_all()
    workers = stack.wait_workers(2, state="idle")
    assert len(workers) == 2
    assert {entry["job"]: entry["state"] for entry in stack.ours("jobs", "list")}[result["job"]] == "done"
    for container in stack.containers():
        assert wait_for(lambda container=container: stack.is_healthy(container), "healthy again", 90)
    again = stack.submit("after", "--items", "2", "--set", "2.steps=1").result()
    assert len(again["files"]) == 2
    assert wait_for(lambda: len(stack.flower_tasks(again["job"])) == 3, "the items of the new job in Flower", 30)


def test_items_that_cannot_end_in_time_are_given_back_when_the_workers_are_stopped(stack: Stack) -> None:
    job = stack.submit("long", "--items", "2", "--set", f"2.steps={ENDLESS_STEPS}")
    stack.wait_workers(2, state="busy")
    (job_id,) = [entry["job"] for entry in stack.ours("jobs", "list") if entry["state"] == "running"]
    containers = stack.containers("worker-cpu")
    stack.compose("stop", "worker-cpu", timeout_s=2 * GRACE_S + 30)  # with the times that docker-compose.yml gives it
    assert stack.containers("worker-cpu") == [] and all(ended_in_time(stack, container) for container in containers)
    given_back = [task for task in stack.flower_tasks(job_id) if task["state"] == "REVOKED"]
    assert sorted(task["kwargs"]["item"] for task in given_back) == [0, 1]
    stack.start_all()
    stack.wait_workers(2, state="busy")  # with the same items, from their beginning
    assert [item["failed_attempts"] for item in items_of(stack, {"job": job_id}).values()] == [0, 0]
    stack.ours("jobs", "cancel", job_id)
    _, remarks = job.process.communicate(timeout=60)
    assert job.process.returncode != 0 and "cancelled" in remarks
