"""Ordinary prompts when something is lost: workers, the servers, ComfyUI itself."""
from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.comfyui.comfy_process import Comfy
from tests.comfyui.ordinary_rig import WORKERS, Crowd, pixels, saved, stock


@pytest.fixture
def crowd(comfy: Comfy, packed_python: str, base_directory: Path, tmp_path: Path) -> Iterator[Crowd]:
    """Not started yet."""
    crowd = Crowd(comfy, packed_python, base_directory, tmp_path / "crowd")
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


def test_killed_workers_cost_a_prompt_nothing_but_time(crowd: Crowd) -> None:
    crowd.start(*WORKERS)
    with crowd.busy_master() as blocking:
        prompt_id = crowd.server.queue(stock(7, pause=300))
        crowd.kill_worker(worker_of(crowd, prompt_id))
        entry = crowd.server.wait(prompt_id)
        [left] = crowd.workers
        assert crowd.done_by(prompt_id) == left, "the other worker runs it"
        assert entry["status"]["status_str"] == "success" and len(saved(entry, crowd.server.base)) == 1
        again = crowd.server.queue(stock(7, pause=300, prefix="again"))
        behind = crowd.server.queue(stock(8))
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


def test_without_servers_prompts_come_back_and_the_master_goes_on_alone(crowd: Crowd) -> None:
    crowd.start("one")
    with crowd.busy_master() as blocking:
        prompt_id = crowd.server.queue(stock(7, pause=3000))
        worker_of(crowd, prompt_id)
        pids = crowd.redis_pids()
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            crowd.server.until(lambda: crowd.running() == [blocking])
            crowd.server.post("/queue", {"delete": [prompt_id]})
            assert crowd.server.get("/prompt")["exec_info"]["queue_remaining"] == 1, "it is an ordinary prompt of the queue again"
            other = crowd.server.queue(stock(8))
            crowd.server.post("/interrupt", {"prompt_id": blocking})
            assert crowd.server.wait(other)["status"]["status_str"] == "success"
            assert crowd.done_by(other) == ""
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        crowd.server.until(lambda: "was cancelled" in crowd.log_of("one"), 60)
    crowd.server.until(lambda: crowd.ordinary()["state"] == "on" and crowd.ordinary()["workers"] == 1)
    with crowd.busy_master():
        later = crowd.server.queue(stock(9))
        crowd.server.wait(later)
        assert crowd.done_by(later) == "one", "it goes on as before"


def test_workers_stop_when_comfyui_ends(crowd: Crowd) -> None:
    crowd.start("one")
    blocking = crowd.server.queue(stock(1, pause=5000))
    crowd.server.until(lambda: blocking in crowd.running())
    prompt_id = crowd.server.queue(stock(7, pause=5000))
    worker_of(crowd, prompt_id)
    began = time.monotonic()
    crowd.server.stop()
    took_s = time.monotonic() - began
    crowd.server.until(lambda: "was cancelled" in crowd.log_of("one") or "ended without a result" in crowd.log_of("one"), 30)
    assert took_s < 30
    assert not list((crowd.output / ".distributed-comfy").glob("ordinary-*"))


def test_nothing_leaves_the_master_before_its_user_said_so(comfy: Comfy, packed_python: str, base_directory: Path, tmp_path: Path) -> None:
    crowd = Crowd(comfy, packed_python, base_directory, tmp_path / "asked", ordinary=None)
    try:
        crowd.start("one")
        assert crowd.ordinary()["state"] == "offered"
        assert "could run ordinary prompts too" in crowd.server.log()
        with crowd.busy_master() as blocking:
            prompt_id = crowd.server.queue(stock(3))
            time.sleep(2)
            assert crowd.running() == [blocking]
        assert crowd.server.wait(prompt_id)["status"]["status_str"] == "success"
        assert crowd.done_by(prompt_id) == ""
    finally:
        crowd.close()
