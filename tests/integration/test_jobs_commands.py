"""``jobs`` and ``workers``: looking, steering, detaching and taking over, with real workers."""
from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest

from distributed_comfy.state.keys import Keys
from tests.cluster_rig import Rig
from tests.command_line import CommandLine, pictures, pixels, slow, texts, until
from tests.prompts import node, out

pytestmark = pytest.mark.redis


@pytest.fixture
def line(builtin_rig: Rig, tmp_path: Path) -> CommandLine:
    """A command line on the rig's servers and workers; an owner that is not heard of is missed soon."""
    cluster = builtin_rig.cluster
    return CommandLine(
        tmp_path,
        DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX=cluster.settings.key_prefix, DC_OWNER_TTL_S="2",
    )  # fmt: skip


def detach(line: CommandLine, prompt: Any, *options: str) -> dict[str, Any]:
    """A job in the background."""
    done = line.run("run", line.write("graph.json", prompt), "--detach", "--json", *options)
    assert done.status == 0, done.err
    found: dict[str, Any] = done.json
    return found


def state(rig: Rig, job_id: str) -> str:
    return rig.cluster.jobs.job_state(job_id).state


def pngs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def test_a_detached_run_returns_with_its_job_and_ends_alone(line: CommandLine, builtin_rig: Rig) -> None:
    done = line.run("run", line.write("graph.json", slow(500, seed=3)), "--items", "6", "--out", "made", "--detach")
    assert done.status == 0, done.err
    job_id = done.out.split()[1]
    assert f"distributed-comfy jobs cancel {job_id}" in done.out and f"distributed-comfy jobs attach {job_id}" in done.out
    assert state(builtin_rig, job_id) in ("pending", "running")
    until(lambda: len(pngs(line.folder / "made")) == 6)
    until(lambda: not line.left_running())
    assert [texts(path)["seed"] for path in pngs(line.folder / "made")] == list(range(3, 9))
    assert state(builtin_rig, job_id) == "done"
    log = Path(done.out.split("tail -f ")[1].split()[0])
    assert "6 files" in log.read_text() and "redis://:" not in log.read_text()


def test_a_detached_run_that_cannot_begin_says_so_at_once(line: CommandLine) -> None:
    done = line.run("run", line.write("graph.json", pictures()), "--items", "0", "--detach")
    assert (done.status, done.out) == (2, "") and "error: items must be from 1 to 10000, not 0" in done.err
    missing = line.run("run", line.folder / "no.json", "--detach")
    assert missing.status == 2 and "cannot read the prompt" in missing.err
    assert until(lambda: not line.left_running())


def test_a_job_whose_collector_is_killed_is_parked_and_can_be_taken_over(line: CommandLine, builtin_rig: Rig) -> None:
    started = detach(line, slow(250, seed=40), "--items", "40", "--out", "made")
    job_id = started["job"]
    until(lambda: len(pngs(line.folder / "made")) >= 2)
    refused = line.run("jobs", "attach", job_id, "--out", "made")
    assert refused.status == 2 and f"job {job_id} is collected by" in refused.err
    os.kill(started["pid"], signal.SIGKILL)
    until(lambda: state(builtin_rig, job_id) == "parked")
    shown = line.run("jobs", "show", job_id)
    assert f"`distributed-comfy jobs attach {job_id} --out DIR` takes it over" in shown.out
    listed = {job["job"]: job for job in line.run("jobs", "list", "--json").json}
    assert listed[job_id]["state"] == "parked" and "attach" in listed[job_id]["reason"]
    executions = len(builtin_rig.executions(job_id))

    done = line.run("jobs", "attach", job_id, "--out", "made", "--json")
    assert done.status == 0, done.err
    assert [item["seed"] for item in done.json["items"]] == [str(seed) for seed in range(40, 80)]
    assert state(builtin_rig, job_id) == "done"
    indexes = sorted(index for index, _, _ in builtin_rig.executions(job_id))
    assert indexes == list(range(40)), "what the killed one had fetched is in the folder, so nothing ran twice"
    assert executions < 40, "there was something left to do"
    again = line.run("jobs", "attach", job_id, "--out", "made")
    assert again.status == 2 and f"job {job_id} is collected; attach needs" in again.err


def test_a_taken_over_job_gives_the_same_pictures(line: CommandLine, builtin_rig: Rig) -> None:
    prompt = slow(100, seed=60)
    assert line.run("run", line.write("whole.json", prompt), "--items", "6", "--out", "whole").status == 0
    started = detach(line, prompt, "--items", "6", "--out", "first")
    until(lambda: len(pngs(line.folder / "first")) >= 1)
    os.kill(started["pid"], signal.SIGKILL)
    until(lambda: state(builtin_rig, started["job"]) == "done")  # before anybody missed its owner
    done = line.run("jobs", "attach", started["job"], "--out", "second", "--json")
    assert done.status == 0, done.err
    files = [line.folder / path for path in done.json["files"]]
    assert len(files) == 6, "what the killed one had fetched was made again for the other folder"
    for mine, theirs in zip(files, pngs(line.folder / "whole"), strict=True):
        assert numpy.array_equal(pixels(mine), pixels(theirs))


def test_whoever_takes_a_job_over_may_bring_workers_for_it(line: CommandLine, builtin_rig: Rig) -> None:
    started = detach(line, slow(500, seed=80), "--items", "12", "--engine", "builtin", "--out", "made")
    until(lambda: len(pngs(line.folder / "made")) >= 1)
    os.kill(started["pid"], signal.SIGKILL)
    done = line.run("jobs", "attach", started["job"], "--out", "made", "--workers", "1")
    assert done.status == 0, done.err
    assert "starting 1 worker" in done.err and re.search(r"^ready: \S+-run\d+-1$", done.err, re.MULTILINE)
    done = line.run("jobs", "attach", started["job"], "--out", "made", "--workers", "1")
    assert done.status == 2 and "starting" not in done.err, "nobody starts workers for a job that is over"


def test_cancel_ends_a_job_and_its_collector(line: CommandLine, builtin_rig: Rig) -> None:
    started = detach(line, slow(300), "--items", "40")
    done = line.run("jobs", "cancel", started["job"], "--reason", "wrong model", "--json")
    assert (done.status, done.json["state"], done.json["reason"]) == (0, "cancelled", "wrong model")
    until(lambda: not psutil.pid_exists(started["pid"]))
    assert f"job {started['job']} was cancelled: wrong model" in Path(started["log"]).read_text()
    again = line.run("jobs", "cancel", started["job"])
    assert again.status == 0, "an order given twice is not an error"
    attach = line.run("jobs", "attach", started["job"])
    assert attach.status == 2 and "is cancelled; attach needs a job that can go on; `jobs retry` makes it one" in attach.err


def test_a_cancelled_job_can_be_retried_and_collected(line: CommandLine) -> None:
    started = detach(line, slow(200, seed=5), "--items", "30", "--out", "first")
    until(lambda: pngs(line.folder / "first"))
    line.run("jobs", "cancel", started["job"])
    until(lambda: not psutil.pid_exists(started["pid"]))
    retried = line.run("jobs", "retry", started["job"])
    assert retried.status == 0 and f"jobs attach {started['job']}" in retried.out
    done = line.run("jobs", "attach", started["job"], "--out", "second", "--json")
    assert done.status == 0, done.err
    assert [item["seed"] for item in done.json["items"]] == [str(seed) for seed in range(5, 35)]
    assert len(pngs(line.folder / "second")) == 30


def test_a_job_that_nobody_can_run_is_queued_says_why_and_is_given_up_in_time(line: CommandLine, builtin_rig: Rig) -> None:
    prompt = pictures()
    prompt["extra"] = node("SuperUpscaler9000", image=out("make"))
    prompt["collect"]["inputs"]["images"] = out("extra")
    before = set(builtin_rig.cluster.jobs.jobs())
    process = line.start("run", line.write("graph.json", prompt), "--items", "2", "--out", "made", "--wait", "6")
    (job_id,) = until(lambda: set(builtin_rig.cluster.jobs.jobs()) - before)
    why = "no live worker can run it: one lacks node class SuperUpscaler9000; two lacks node class SuperUpscaler9000"
    assert why in line.run("jobs", "show", job_id).out
    assert {job["job"]: job["reason"] for job in line.run("jobs", "list", "--json").json}[job_id] == why
    done = line.finish(process)
    assert done.status == 3, done.err
    assert "one lacks node class SuperUpscaler9000" in done.err and "it is queued and waits" in done.err
    assert "no item was finished" in done.err
    assert state(builtin_rig, job_id) == "cancelled"


def test_a_failed_job_is_listed_with_its_item_its_node_its_worker_and_the_reason(line: CommandLine, builtin_rig: Rig) -> None:
    prompt = pictures()
    prompt["bad"] = node("RuleFail", images=out("make"), seed=out("seed"), bad_seed=11)
    prompt["seed"]["inputs"]["seed"] = 10
    prompt["collect"]["inputs"]["images"] = out("bad")
    before = set(builtin_rig.cluster.jobs.jobs())
    assert line.run("run", line.write("graph.json", prompt), "--items", "2", "--out", "made").status == 1
    (job_id,) = set(builtin_rig.cluster.jobs.jobs()) - before
    listed = {job["job"]: job for job in line.run("jobs", "list", "--json").json}[job_id]
    assert (listed["state"], listed["reason"]) == ("failed", "item 1 failed") and "seed 11 brings no luck" in str(listed["error"])
    assert "item 1 failed: node bad (RuleFail) raised" in line.run("jobs", "list", COLUMNS="300").out
    shown = line.run("jobs", "show", job_id).out
    assert "seed 11 brings no luck" in shown and "RuleFail" in shown and "item 1" in shown
    item = line.run("jobs", "show", job_id, "--json").json["items"][1]
    assert item["state"] == "failed" and item["worker"] in builtin_rig.workers and "seed 11 brings no luck" in str(item["error"])


def test_a_paused_job_gets_nothing_until_it_is_resumed(line: CommandLine, builtin_rig: Rig) -> None:
    started = detach(line, slow(100), "--items", "100", "--out", "made")
    job_id = started["job"]
    assert line.run("jobs", "pause", job_id, "--json").json["state"] == "paused"
    until(lambda: builtin_rig.cluster.jobs.job_state(job_id).counts["running"] == 0)
    before = builtin_rig.cluster.jobs.job_state(job_id).counts["done"]
    other = line.run("run", line.write("other.json", pictures()), "--items", "2", "--json")
    assert other.status == 0, "the workers are free for others"
    assert builtin_rig.cluster.jobs.job_state(job_id).counts["done"] == before < 100
    assert line.run("jobs", "resume", job_id, "--json").json["state"] in ("running", "done")
    until(lambda: state(builtin_rig, job_id) == "done")


def test_a_priority_can_be_changed_and_is_checked(line: CommandLine) -> None:
    started = detach(line, slow(100), "--items", "200", "--priority", "2")
    assert line.run("jobs", "show", started["job"], "--json").json["priority"] == 2
    assert line.run("jobs", "priority", started["job"], "9", "--json").json["priority"] == 9
    assert line.run("jobs", "priority", started["job"], "10").status == 2
    line.run("jobs", "cancel", started["job"])


def test_show_lists_every_item(line: CommandLine) -> None:
    found = line.run("run", line.write("graph.json", pictures(seed=70)), "--items", "3", "--user", "ann", "--json").json
    shown = line.run("jobs", "show", found["job"], "--json").json
    assert (shown["state"], shown["user"], shown["prompt"]) == ("done", "ann", "graph.json")
    rows = [(item["index"], item["seed"], item["state"]) for item in shown["items"]]
    assert rows == [(0, "70", "done"), (1, "71", "done"), (2, "72", "done")]
    assert {item["worker"] for item in shown["items"]} <= {"one", "two"}
    text = line.run("jobs", "show", found["job"]).out
    assert "3/3 items done" in text and "graph.json of ann" in text


@pytest.mark.parametrize("order", ["show", "cancel", "retry", "pause", "resume", "attach"])
def test_an_unknown_job_is_named(line: CommandLine, order: str) -> None:
    done = line.run("jobs", order, "0123456789ab")
    assert done.status == 2 and "no job 0123456789ab; `distributed-comfy jobs list` shows the known ones" in done.err


def test_an_ended_job_cannot_be_steered(line: CommandLine) -> None:
    job_id = line.run("run", line.write("graph.json", pictures()), "--items", "1", "--json").json["job"]
    for order in ("cancel", "pause", "resume", "retry"):
        done = line.run("jobs", order, job_id)
        assert done.status == 2 and f"job {job_id} is done; {order} needs" in done.err


def test_workers_are_listed_with_what_they_are(line: CommandLine) -> None:
    found = {worker["name"]: worker for worker in line.run("workers", "list", "--json").json}
    assert {"one", "two"} <= set(found)
    assert found["one"]["engine"] == "builtin" and found["one"]["device"] == "cpu" and found["one"]["state"] in ("idle", "ticketed")
    table = line.run("workers", "list").out
    assert "WORKER" in table and "builtin" in table


def test_a_drained_worker_gets_nothing_until_it_is_undrained(line: CommandLine) -> None:
    assert line.run("workers", "drain", "two").out == "worker two gets nothing more\n"
    try:
        found = {worker["name"]: worker["state"] for worker in line.run("workers", "list", "--json").json}
        assert found["two"] == "drained"
        path = line.write("graph.json", slow(30))
        done = line.run("run", path, "--items", "6", "--json").json
        assert {item["worker"] for item in done["items"]} == {"one"}
    finally:
        assert line.run("workers", "undrain", "two", "--json").json == {"worker": "two", "drained": False}
    done = line.run("run", path, "--items", "6", "--seed", "900", "--json").json
    assert {item["worker"] for item in done["items"]} == {"one", "two"}


def test_an_unknown_worker_is_named(line: CommandLine) -> None:
    done = line.run("workers", "drain", "three")
    assert done.status == 2 and "no worker 'three' (there are one, two); `distributed-comfy workers list` shows the known ones" in done.err


def test_workers_are_told_to_look_again_or_to_free_their_device_one_or_all(line: CommandLine, builtin_rig: Rig) -> None:
    cluster = builtin_rig.cluster
    with cluster.client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(*(Keys(cluster.settings.key_prefix)("steering", name) for name in ("one", "two")))
        assert line.run("workers", "look").out == "worker one looks again\nworker two looks again\n"
        assert line.run("workers", "look", "two", "--json").json == [{"worker": "two", "heard": True}]
        assert line.run("workers", "free", "one").out == "worker one frees its device as soon as nothing runs there\n"
        assert line.run("workers", "free", "--json").json == [{"worker": "one", "heard": True}, {"worker": "two", "heard": True}]
        heard: list[dict[str, Any]] = []
        until(lambda: heard.extend(filter(None, [channel.get_message(timeout=0.1)])) or len(heard) == 6)
    orders = [(message["channel"].rpartition(":")[2], message["data"]) for message in heard]
    assert orders == [("one", "look"), ("two", "look"), ("two", "look"), ("one", "free"), ("one", "free"), ("two", "free")]
    builtin_rig.wait_idle()
    done = line.run("workers", "free", "three")
    assert done.status == 2 and "no worker 'three' (there are one, two); `distributed-comfy workers list` shows the known ones" in done.err
