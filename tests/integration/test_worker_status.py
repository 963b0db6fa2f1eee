"""What workers tell about themselves, and their logs, with real workers: seen from another process, while they live and after."""
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from distributed_comfy.settings import read_settings
from distributed_comfy.state.keys import Keys
from distributed_comfy.state.status import WorkerStatus
from tasks.cluster import Cluster, open_cluster
from tests.command_line import CommandLine, pictures, until
from tests.conftest import RedisServer
from tests.prompts import node, out

pytestmark = [pytest.mark.redis, pytest.mark.timeout(180)]
SECRET = "hunter2-of-the-page"
PREFIX = "status-desk:"
STEPS = 1500


@dataclass
class Desk:
    """Commands and workers on servers of their own, and a look into these."""

    line: CommandLine
    cluster: Cluster
    workers: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def start(self, name: str, **environment: str) -> subprocess.Popen[str]:
        """Start a worker and do not wait for it."""
        self.workers[name] = self.line.start("worker", "--engine", "builtin", "--device", "cpu", "--name", name, **environment)
        return self.workers[name]

    def status(self, name: str) -> WorkerStatus | None:
        return self.cluster.statuses.read([name]).get(name)

    def when(self, name: str, what: Callable[[WorkerStatus], Any], timeout_s: float = 40.0) -> WorkerStatus:
        """The first status of which this is true."""
        found: WorkerStatus = until(lambda: (status := self.status(name)) and what(status) and status, timeout_s)
        return found

    def ready(self, name: str, **environment: str) -> WorkerStatus:
        self.start(name, **environment)
        return self.when(name, lambda status: status.state == "idle")

    def log(self, name: str) -> list[str]:
        return [line.text for line in self.cluster.logs.last(name, 10_000)]


@contextmanager
def open_desk(folder: Path, redis_url: str, blob_url: str, prefix: str = "dc:") -> Iterator[Desk]:
    servers = {"DC_REDIS_URL": redis_url, "DC_BLOB_URL": blob_url, "DC_KEY_PREFIX": prefix}
    line = CommandLine(folder, **servers, DC_FLOWER_BASIC_AUTH=f"ann:{SECRET}", DC_THREADS="1")
    cluster = open_cluster(read_settings(key_prefix=prefix), redis_url, blob_url)
    desk = Desk(line, cluster)
    yield desk
    for process in desk.workers.values():
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=30)
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
    cluster.close()
    assert until(lambda: not line.left_running())


@pytest.fixture
def desk(redis_url: str, blob_url: str, tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path, redis_url, blob_url) as desk:
        yield desk


@pytest.fixture(scope="module")
def _shared(cluster_servers: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("desk"), cluster_servers.state_url, cluster_servers.blob_url, PREFIX) as desk:
        desk.ready("one", DC_STATUS_INTERVAL_S="0.25", DC_WORKER_TAGS="big")
        yield desk


@pytest.fixture
def shared(_shared: Desk) -> Desk:
    """A desk that the tests of this file share, with worker ``one``, which is idle and survives the test."""
    assert _shared.workers["one"].poll() is None
    _shared.when("one", lambda status: status.state == "idle")
    return _shared


def long(**changes: Any) -> Any:
    """A prompt that takes seconds and tells each step."""
    return pictures(steps=STEPS, width=128, height=128, **changes)


# -- status -------------------------------------------------------------------------------------------------------------
def test_a_worker_tells_that_it_starts_within_a_second_of_its_name_and_then_what_it_has(desk: Desk) -> None:
    desk.start("one", DC_STARTED_BY="systemd")
    until(lambda: desk.cluster.workers.starting() or desk.status("one"))
    named = time.monotonic()
    first = desk.when("one", lambda status: True)
    assert time.monotonic() - named < 1.0
    assert first.state == "starting" and first.reason == "the engine starts"
    found = desk.when("one", lambda status: status.state == "idle" and status.use.utilisation_percent is not None)
    assert (found.device, found.engine, found.engine_version, found.reason) == ("cpu", "builtin", "0.1.0", "")
    assert found.started_by == "systemd" and found.items == () and found.items_done == 0 and found.last_error is None
    assert found.pid == desk.workers["one"].pid and found.engine_pid not in (0, found.pid)
    assert found.host_use.total_bytes > found.host_use.used_bytes > found.host_use.engine_bytes > 10 * 2**20
    assert found.use.name and found.use.total_bytes is None, "a processor has no memory of its own"
    capability = desk.cluster.matching.capabilities()[found.capability]
    assert found.node_classes == len(capability.node_classes) and found.model_files == 0
    assert found.started_ms <= found.since_ms


def test_a_worker_is_busy_with_item_node_and_step_and_idle_again(shared: Desk) -> None:
    before = shared.when("one", bool)
    running = shared.line.start("run", shared.line.write("graph.json", long()), "--items", "2", "--json")
    busy = shared.when("one", lambda status: status.items and status.items[0].value > 0)
    item = busy.items[0]
    assert busy.state == "busy" and busy.reason == ""
    assert (item.node_id, item.node_class, item.maximum, item.kind, item.attempt) == ("make", "SeededGenerator", STEPS, "generate", 1)
    later = shared.when("one", lambda status: status.items and status.items[0].value > item.value)
    assert later.items[0].started_ms >= item.started_ms
    done = shared.line.finish(running).json
    assert {f"{done['job']}-{index}" for index in range(2)} >= {item.item}
    idle = shared.when("one", lambda status: status.state == "idle" and status.items_done == before.items_done + 2)
    assert idle.items == () and idle.items_failed == before.items_failed and idle.since_ms >= item.started_ms


def test_a_change_of_state_is_told_at_once(desk: Desk) -> None:
    desk.ready("one", DC_STATUS_INTERVAL_S="30")
    heard: list[WorkerStatus] = []
    stop = threading.Event()
    listening = threading.Thread(target=lambda: heard.extend(desk.cluster.statuses.watch(stop)))
    listening.start()
    until(lambda: desk.cluster.client.pubsub_numpat())
    began = time.monotonic()
    assert desk.line.run("run", desk.line.write("graph.json", pictures()), "--items", "3", "--json").status == 0
    until(lambda: any(status.items_done == 3 and status.state == "idle" for status in heard))
    assert time.monotonic() - began < 25, "and not only at the next interval"
    assert any(status.state == "busy" and status.items for status in heard)
    stop.set()
    listening.join(5)


def test_a_drained_worker_says_so(shared: Desk) -> None:
    running = shared.line.start("run", shared.line.write("graph.json", long()), "--items", "1", "--json")
    shared.when("one", lambda status: status.state == "busy")
    shared.cluster.jobs.drain("one")
    draining = shared.when("one", lambda status: status.state == "draining")
    assert draining.items and "`distributed-comfy workers undrain one`" in draining.reason
    assert shared.line.finish(running).status == 0
    assert "undrain" in shared.when("one", lambda status: status.state == "drained").reason
    assert shared.line.run("workers", "show", "one").out.startswith("worker one: drained")
    shared.line.run("workers", "undrain", "one")
    shared.when("one", lambda status: status.state == "idle" and not status.reason)


def test_a_dead_engine_is_told_with_its_end(desk: Desk) -> None:
    first = desk.ready("one")
    os.kill(first.engine_pid, signal.SIGKILL)
    down = desk.when("one", lambda status: status.state == "down")
    assert down.reason.startswith("the engine ended with signal 9 (SIGKILL); it starts again") and down.engine_pid == 0
    again = desk.when("one", lambda status: status.state == "idle")
    assert again.last_error is not None and again.last_error.code == "engine_died" and again.items_failed == 0
    assert again.engine_pid != first.engine_pid and again.pid == first.pid


def test_an_engine_that_is_killed_as_it_starts_is_told_in_one_sentence(desk: Desk) -> None:
    first = desk.ready("one")
    worker = psutil.Process(first.pid)
    os.kill(first.engine_pid, signal.SIGKILL)
    (starting,) = until(lambda: [child for child in worker.children() if child.pid != first.engine_pid])
    starting.kill()
    down = desk.when("one", lambda status: status.state == "down" and "did not start" in status.reason)
    assert re.fullmatch(r"the engine did not start: it ended with signal 9 \(SIGKILL\); it starts again after \d s", down.reason)
    desk.when("one", lambda status: status.state == "idle")


def test_a_failed_item_is_the_last_error(shared: Desk) -> None:
    before = shared.when("one", bool)
    shared.line.write("broken.png", "no picture")
    prompt = {"load": node("LoadImage", image="broken.png"), "save": node("SaveImage", images=out("load"), filename_prefix="x")}
    assert shared.line.run("run", shared.line.write("graph.json", prompt)).status == 1
    status = shared.when("one", lambda status: status.items_failed > before.items_failed)
    error = status.last_error
    assert error is not None and error.code == "node_failed" and "LoadImage" in error.words
    assert error.item.endswith("-0") and status.started_ms < error.at_ms
    assert (status.items_done, status.items_failed) == (before.items_done, before.items_failed + 1)
    assert "last error node_failed, " in shared.line.run("workers", "show", "one").out


def test_a_status_vanishes_with_a_worker_that_is_killed_and_with_one_that_ends(desk: Desk) -> None:
    told = desk.ready("killed")
    desk.ready("ended")
    desk.workers["ended"].terminate()
    desk.workers["ended"].wait(30)
    assert desk.status("ended") is None, "at once"
    desk.workers["killed"].kill()
    desk.workers["killed"].wait(30)
    killed = time.monotonic()
    until(lambda: desk.status("killed") is None)
    assert time.monotonic() - killed < 3 * told.interval_s + 1


# -- commands -----------------------------------------------------------------------------------------------------------
def test_workers_are_shown_as_json_with_all_they_tell(shared: Desk) -> None:
    key = Keys(PREFIX)("status", "one")
    listed = shared.line.run("workers", "list", "--json").json
    shown = shared.line.run("workers", "show", "one", "--json").json
    assert listed[0]["status"]["name"] == "one" and shown["status"]["state"] == "idle" == shown["state"]
    assert shown["tags"] == ["big"] and shown["packs"] == {} and shown["capability"] == shown["status"]["capability"]
    text = shared.line.run("workers", "show", "one").out
    for part in ("worker one: idle for ", "builtin 0.1.0, ", "node classes", "big", "distributed-comfy workers logs one"):
        assert part in text
    shared.cluster.client.delete(key)
    shared.workers["one"].send_signal(signal.SIGSTOP)
    shared.cluster.client.delete(key)
    try:
        row = next(line for line in shared.line.run("workers", "list").out.splitlines() if line.startswith("one"))
        assert "builtin" in row, "a worker that tells no status is listed"
    finally:
        shared.workers["one"].send_signal(signal.SIGCONT)
    done = shared.line.run("workers", "show", "two")
    assert done.status == 2 and "no worker 'two' (there are one" in done.err


def test_without_a_worker_nobody_knows_what_is_missing(desk: Desk) -> None:
    done = desk.line.run("models", "missing", desk.line.write("graph.json", pictures()))
    assert done.status == 3 and "no worker is running" in done.err


def test_models_missing_names_what_is_not_there(shared: Desk) -> None:
    path = shared.line.write("graph.json", pictures())
    done = shared.line.run("models", "missing", path)
    assert done.status == 0 and done.out == "no worker lacks anything\n", done
    prompt = pictures()
    prompt["load"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "photo.safetensors"}}
    prompt["save"] = {"class_type": "SaveImage", "inputs": {"images": ["paint", 0], "filename_prefix": "x"}}
    prompt["paint"] = {"class_type": "PaintOfAPack", "inputs": {"model": ["load", 0]}}
    done = shared.line.run("models", "missing", shared.line.write("other.json", prompt))
    assert done.status == 1, done
    assert "node class PaintOfAPack is not on one" in done.out and "checkpoints" in done.out and "photo.safetensors" in done.out
    found = shared.line.run("models", "missing", shared.line.write("other.json", prompt), "--json").json
    assert [entry["class_type"] for entry in found["node_classes"]] == ["CheckpointLoaderSimple", "PaintOfAPack"]
    assert shared.line.run("models", "list").out == "no worker has a model file\n"
    broken = shared.line.run("models", "missing", shared.line.write("broken.json", "{"))
    assert broken.status == 2


# -- logs ---------------------------------------------------------------------------------------------------------------
def test_a_log_is_followed_live_from_another_process_and_ends_silently(shared: Desk) -> None:
    following = shared.line.start("workers", "logs", "one", "-f")
    said: list[str] = []
    assert following.stdout is not None
    reading = threading.Thread(target=lambda: said.extend(iter(following.stdout.readline, "")))  # type: ignore[union-attr]
    reading.start()
    until(lambda: any("worker one is ready" in text for text in said))
    assert any("worker one starts: engine builtin" in text for text in said)
    job = shared.line.run("run", shared.line.write("graph.json", pictures()), "--items", "1", "--json").json["job"]
    until(lambda: any(f"worker INFO    item {job}-0 is done in" in text for text in said), timeout_s=5)
    until(lambda: any(f"engine INFO    item {job}-0 begins" in text for text in said), timeout_s=5)
    following.send_signal(signal.SIGINT)
    assert following.wait(10) == 130
    reading.join(10)
    following.stdout.close()
    assert following.stderr is not None and following.stderr.read() == ""
    following.stderr.close()


def test_the_log_of_a_killed_worker_is_still_there(desk: Desk) -> None:
    desk.ready("one")
    until(lambda: any("is ready" in text for text in desk.log("one")))
    desk.workers["one"].kill()
    desk.workers["one"].wait(30)
    until(lambda: not desk.cluster.workers.workers() or desk.cluster.workers.workers()[0].state == "lost")
    done = desk.line.run("workers", "logs", "one", "-n", "3", "--json")
    lines = [json.loads(text) for text in done.out.splitlines()]
    assert done.status == 0 and 2 <= len(lines) <= 3 and "worker one is gone; its last line is" in done.err
    assert {"worker", "source", "time", "level", "message", "id"} == set(lines[0]) and any("is ready" in line["message"] for line in lines)
    assert 0 < desk.cluster.client.pttl("dc:worker:one:log") <= 3_600_000
    done = desk.line.run("workers", "logs", "none")
    assert done.status == 2 and "no worker 'none' (there are one" in done.err


def test_a_log_is_readable_and_without_secrets_whatever_its_format_and_stays_capped(desk: Desk) -> None:
    desk.ready("one", DC_LOG_FORMAT="json", DC_LOG_LINES="100")
    engine_log = desk.line.folder / "cache" / "workers" / "one" / "engine.log"
    with engine_log.open("a") as log:
        log.write(f"\x1b[31mthe page has {SECRET}\x1b[0m and redis://u:pw@h\n")
        log.write("".join(f"\r{step:3}%|{'#' * step}| {step}/100 [00:01<00:00]" for step in range(101)) + "\n")
    until(lambda: any("100/100" in text for text in desk.log("one")))
    lines = desk.log("one")
    assert "the page has *** and redis://u:***@h" in lines
    assert sum("%|" in text for text in lines) <= 2
    assert any(text.startswith("worker one is ready") for text in lines), "no JSON"
    assert not any(SECRET in text or text.startswith("{") for text in lines)
    with engine_log.open("a") as log:
        log.write("".join(f"spam {number}\n" for number in range(5000)))
    until(lambda: any("lines were dropped: more than 50 a second" in text for text in desk.log("one")))
    assert desk.cluster.client.xlen("dc:worker:one:log") <= 250


def test_lines_wait_for_a_server_that_is_away(desk: Desk) -> None:
    desk.ready("one")
    engine_log = desk.line.folder / "cache" / "workers" / "one" / "engine.log"
    desk.cluster.client.client_pause(2500, all=True)
    with engine_log.open("a") as log:
        log.write("said while nobody listened\n")
    until(lambda: "said while nobody listened" in desk.log("one"), timeout_s=20)
    assert desk.log("one").count("said while nobody listened") == 1
