"""Ordinary prompts when something is lost: workers, the servers, ComfyUI itself."""
from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from distributed_comfy.comfyui.placed_files import JOURNAL
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.ordinary_rig import WORKERS, Crowd, blocker, pixels, saved, stock
from tests.conftest import RedisServer


@pytest.fixture(scope="module")
def crowd(
    comfy: Comfy, packed_python: str, base_directory: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Crowd]:
    """Each test starts what it needs and is not there; the servers are those of the tests, and outlive ComfyUI."""
    servers = {"DC_REDIS_URL": redis_server.state_url, "DC_BLOB_URL": redis_server.blob_url, "DC_KEY_PREFIX": "bad-days:"}
    crowd = Crowd(comfy, packed_python, base_directory, tmp_path_factory.mktemp("bad-days"), **servers)
    try:
        yield crowd
    finally:
        crowd.close()


def worker_of(crowd: Crowd, prompt_id: str) -> str:
    """The worker that runs a prompt now."""

    def found() -> str:
        marks = [line for line in crowd.server.log().splitlines() if f"prompt {prompt_id} runs on the cluster as job " in line]
        job_id = marks[-1].split("as job ")[1].split()[0] if marks else ""
        logs = {name: crowd.log_of(name) for name in crowd.workers}
        return next((name for name, log in logs.items() if job_id and f"item {job_id}-0 starts" in log), "")

    name: str = crowd.server.until(found)
    return name


def test_nothing_leaves_the_master_before_its_user_said_so(crowd: Crowd) -> None:
    crowd.start(*WORKERS, ordinary=None)
    assert crowd.ordinary()["state"] == "offered"
    assert crowd.server.log().count("worker(s) could run ordinary prompts too") == 1, "said with the first worker, and once"
    with crowd.busy_master() as blocking:
        prompt_id = crowd.server.queue(stock(3))
        time.sleep(2)
        assert crowd.running() == [blocking]
    assert crowd.server.wait(prompt_id)["status"]["status_str"] == "success"
    assert crowd.done_by(prompt_id) == ""


def test_without_servers_prompts_come_back_and_the_master_goes_on_alone(crowd: Crowd, redis_server: RedisServer) -> None:
    crowd.start(*WORKERS)
    with crowd.busy_master() as blocking:
        prompt_id = crowd.server.queue(stock(7, pause=5000))
        worker_of(crowd, prompt_id)
        with stopped(redis_server):
            crowd.server.until(lambda: crowd.running() == [blocking])
            assert f"prompt {prompt_id} is back in the queue: the server of the table has not answered" in crowd.server.log()
            crowd.server.post("/queue", {"delete": [prompt_id]})
            assert crowd.server.get("/prompt")["exec_info"]["queue_remaining"] == 1, "it is a prompt of the queue like any other"
            other = crowd.server.queue(stock(8))
            crowd.server.post("/interrupt", {"prompt_id": blocking})
            assert crowd.server.wait(other)["status"]["status_str"] == "success"
            assert crowd.done_by(other) == ""
    crowd.wait_workers(2)
    crowd.server.until(lambda: crowd.ordinary()["state"] == "on")
    with crowd.busy_master():
        later = crowd.server.queue(stock(9))
        crowd.server.wait(later)
        assert crowd.done_by(later) in WORKERS, "it goes on as before, and no worker is held by what was given up"


@contextmanager
def stopped(servers: RedisServer) -> Iterator[None]:
    """While the context lasts both servers do nothing, as on a host that hangs."""
    pids = []
    for url in (servers.state_url, servers.blob_url):
        with redis.Redis.from_url(url) as client:
            pids.append(int(client.info("server")["process_id"]))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_killed_workers_cost_a_prompt_nothing_but_time(crowd: Crowd) -> None:
    crowd.start(*WORKERS)
    with crowd.busy_master() as blocking:
        prompt_id = crowd.server.queue(stock(17, pause=300))
        crowd.kill_worker(worker_of(crowd, prompt_id))
        entry = crowd.server.wait(prompt_id)
        [left] = crowd.workers
        assert crowd.done_by(prompt_id) == left, "the other worker runs it"
        assert entry["status"]["status_str"] == "success" and len(saved(entry, crowd.server.base)) == 1
        same = stock(17, pause=300, prefix="again")
        same["slow"]["inputs"]["salt"] = 1  # or it would be served from the worker's cache
        again = crowd.server.queue(same)
        behind = crowd.server.queue(stock(18))
        assert worker_of(crowd, again) == left
        crowd.kill_worker(left)
        crowd.server.until(lambda: crowd.running() == [blocking])
        waiting = [item[1] for item in sorted(crowd.server.get("/queue")["queue_pending"])]
        assert waiting == [again, behind], "it is back at its old place"
        assert crowd.server.get("/prompt")["exec_info"]["queue_remaining"] == 3
    [second] = saved(crowd.server.wait(again), crowd.server.base)
    assert crowd.done_by(again) == "", "the master runs it in the end"
    [first] = saved(entry, crowd.server.base)
    assert pixels(first).tobytes() == pixels(second).tobytes()
    assert crowd.server.wait(behind)["status"]["status_str"] == "success"


def test_workers_stop_when_comfyui_ends(crowd: Crowd) -> None:
    crowd.start("one")
    blocking = crowd.server.queue(blocker())
    crowd.server.until(lambda: blocking in crowd.running())
    prompt_id = crowd.server.queue(stock(27, pause=5000))
    worker_of(crowd, prompt_id)
    crowd.server.stop()
    crowd.server.until(lambda: "is given back" in crowd.log_of("one"), 30)
    assert not list((crowd.output / ".distributed-comfy").glob("ordinary-*"))


def test_what_a_killed_comfyui_left_is_gone_after_the_next_start(crowd: Crowd) -> None:
    crowd.start("one")
    blocking = crowd.server.queue(blocker())
    crowd.server.until(lambda: blocking in crowd.running())
    prompt_id = crowd.server.queue(stock(28, pause=5000))
    worker_of(crowd, prompt_id)
    [spool] = crowd.server.until(lambda: list((crowd.output / ".distributed-comfy").glob("ordinary-*")), 20)
    crowd.server.kill()
    nameless = crowd.output / "sub" / ".0123456789abcdef.part"  # as if it had been killed while it named files
    nameless.parent.mkdir(exist_ok=True)
    nameless.touch()
    (spool / JOURNAL).write_text(f"{nameless}\n")
    crowd.start("one")
    assert not spool.parent.exists() and not nameless.exists()


def test_an_embedded_redis_that_dies_costs_a_prompt_nothing_either(
    comfy: Comfy, packed_python: str, base_directory: Path, tmp_path: Path
) -> None:
    crowd = Crowd(comfy, packed_python, base_directory, tmp_path / "crowd")
    try:
        crowd.start("one")
        with crowd.busy_master() as blocking:
            prompt_id = crowd.server.queue(stock(37, pause=5000))
            worker_of(crowd, prompt_id)
            for process in embedded_servers(crowd):
                process.kill()
            time.sleep(1.0)  # they are started again where they were
            crowd.server.until(lambda: crowd.ordinary()["state"] == "on")
            pending = [item[1] for item in crowd.server.get("/queue")["queue_pending"]]
            assert sorted([*pending, *crowd.running()]) == sorted([prompt_id, blocking]), "it waits again, or runs again"
            crowd.server.post("/queue", {"delete": [prompt_id]})
            crowd.server.post("/interrupt", {"prompt_id": prompt_id})
            crowd.server.until(lambda: crowd.running() == [blocking])
            crowd.kill_worker("one")
            crowd.start_worker("two")
            crowd.wait_workers(1)
            later = crowd.server.queue(stock(38))
            crowd.server.wait(later)
            assert crowd.done_by(later) == "two"
    finally:
        crowd.close()


def embedded_servers(crowd: Crowd) -> list[psutil.Process]:
    """The pack's own Redis servers."""
    programs = [process for process in psutil.process_iter() if process.name().startswith(("redis-server", "valkey-server"))]
    found = [process for process in programs if Path(process.cwd()).is_relative_to(crowd.server.line.folder)]
    assert found
    return found
