"""The panel on a real ComfyUI's own port: who may ask, what a master has, jobs of its prompts, and how they are ended."""
from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.comfyui.comfy_process import Comfy
from tests.comfyui.server_rig import ComfyServer
from tests.command_line import CommandLine
from tests.panel_contract import Declared, declared
from tests.panel_rig import Page
from tests.prompts import node, out

WORKER = "pc1-cpu"
GUARDED = [each for each in declared() if not each.is_open]


def named(each: Declared) -> str:
    return each.name


@pytest.fixture(scope="module")
def running(
    comfy: Comfy, packed_python: str, base_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """A ComfyUI that only orchestrates, with one worker of the built-in engine, on an embedded Redis."""
    server = ComfyServer(comfy, packed_python, base_directory, CommandLine(tmp_path_factory.mktemp("panel")))
    config = server.line.folder / "home" / ".config" / "distributed-comfy"
    config.mkdir(parents=True)
    (config / "workers.json").write_text(json.dumps({"workers": {WORKER: {"device": "cpu"}}}))
    (config / "comfyui.json").write_text(json.dumps({"participate": False}))
    server.start(DC_HOST="pc1")
    server.wait_ready()
    server.until(lambda: server.status()["host"]["agent"] == "here")
    yield server
    server.close()


@pytest.fixture(scope="module")
def page(running: ComfyServer) -> Page:
    status, given = running.post("/distributed_comfy/token", Origin=running.url, Sec_Fetch_Site="same-origin")
    assert status == 200, given
    return Page(running.url, given["token"])


@pytest.fixture(scope="module")
def worker(page: Page) -> str:
    """Started from the page."""
    page.post(f"/workers/{WORKER}/orders", {"order": "start"})
    page.wait_worker(WORKER, lambda found: found["state"] == "idle", 120)
    return WORKER


def prompt(seed: int, *, images: int = 1, side: int = 64) -> dict[str, Any]:
    """seed -> picture -> collector -> file; each seed another picture."""
    return {
        "1": node("DistributedSeed", seed=seed),
        "2": node("EmptyImage", width=side, height=side, batch_size=images, color=out("1")),
        "3": node("DistributedCollector", images=out("2"), load_balance=False),
        "4": node("SaveImage", images=out("3"), filename_prefix="panel"),
    }


@pytest.mark.parametrize("each", GUARDED, ids=named)
def test_no_route_answers_a_stranger_or_another_site(running: ComfyServer, page: Page, each: Declared) -> None:
    body = {} if "requestBody" in each.operation else None
    answer = page.ask(each.method, each.url(), body, X_Distributed_Comfy_Token="")
    assert (answer.status, answer.error["code"]) == (401, "token_wrong")
    assert page.ask(each.method, each.url(), body, Host="rebound.example.com").status == 403
    assert running.ask(each.method, "/api" + each.url(), body)[0] == 401  # ComfyUI offers each route a second time


def test_a_master_shows_itself_and_changes_its_options(page: Page) -> None:
    state = page.state()
    assert state["kind"] == "comfyui" and state["master"]["session"] == "ready" and state["master"]["agent"] == "here"
    assert state["master"]["options"]["participate"] is False and state["master"]["device"] == "cpu"
    with page.events() as events:
        changed = page.post("/master", {"participate": True, "debug": True}, method="PATCH")
        assert changed["options"]["participate"] and changed["options"]["debug"]
        events.wait(lambda state: state["master"]["options"]["debug"])
    page.post("/master", {"participate": False, "debug": False}, method="PATCH")
    wrong = page.ask("PATCH", "/master", {"debug": "yes"})
    assert (wrong.status, wrong.error["code"]) == (400, "option_wrong")


def test_a_prompt_of_this_comfyui_is_a_job_of_its_own_with_files(running: ComfyServer, page: Page, worker: str) -> None:
    with page.events() as events:
        prompt_id = running.queue(prompt(11))
        mine = events.wait(lambda state: [job for job in state["jobs"].values() if job["mine"]])
        running.wait(prompt_id)
        events.wait(lambda state: state["master"]["running"] == 0)
    job_id = mine[0]["id"]
    detail = page.get(f"/jobs/{job_id}")
    assert detail["job"]["state"] in ("done", "cancelled") and detail["results_here"], detail
    assert detail["results"] and detail["results"][0]["name"].startswith("panel")
    picture = page.ask("GET", f"/jobs/{job_id}/results/{detail['results'][0]['path']}")
    assert Image.open(io.BytesIO(picture.content)).size == (64, 64)


def test_options_of_another_pack_are_taken_over_here(page: Page) -> None:
    text = json.dumps({"workers": [], "settings": {"debug": True, "master_delegate_only": True, "worker_timeout_seconds": 60}})
    looked = page.post("/import", {"text": text, "dry_run": True})
    assert looked["options"] == {"debug": True, "participate": False} and not page.get("/master")["options"]["debug"]
    assert [each["place"] for each in looked["dropped"]] == ["settings.worker_timeout_seconds"]
    page.post("/import", {"text": text})
    assert page.get("/master")["options"]["debug"]
    page.post("/master", {"debug": False}, method="PATCH")


def test_a_master_that_takes_part_is_seen_as_a_guest_that_obeys_no_order(running: ComfyServer, page: Page, worker: str) -> None:
    page.post("/master", {"participate": True}, method="PATCH")
    page.post(f"/workers/{worker}/orders", {"order": "drain"})
    try:
        with page.events() as events:
            prompt_id = running.queue(prompt(301, images=24, side=1024))  # it takes a while
            guest = events.wait(lambda state: [found for found in state["workers"].values() if found["guest"]])
            running.wait(prompt_id)
        assert guest[0]["keeper"] == "comfyui" and guest[0]["orders"] == [] and not guest[0]["editable"]
    finally:
        page.post(f"/workers/{worker}/orders", {"order": "resume"})
        page.post("/master", {"participate": False}, method="PATCH")


def test_memory_of_the_master_is_cleared_with_that_of_its_workers(page: Page, worker: str) -> None:
    answer = page.post("/orders", {"order": "clear-memory"})
    assert answer["master"] and list(answer["told"]) == [worker]


def test_all_prompts_of_this_master_are_ended(running: ComfyServer, page: Page, worker: str) -> None:
    page.post(f"/workers/{worker}/orders", {"order": "drain"})
    page.wait_worker(worker, lambda found: found["state"] == "drained")
    try:
        ids = [running.queue(prompt(100 + number)) for number in range(3)]
        running.until(lambda: page.state()["master"]["running"] == 1)
        ended = page.post("/master/interrupt", {"what": "mine"})
        assert ended["prompts"] == 3
        running.until(lambda: (found := page.state()["master"]) and found["running"] == 0 and found["waiting"] == 0)
        running.until(lambda: not [job for job in page.state()["jobs"].values() if job["state"] in ("pending", "running")])
        assert running.history(ids[2]) is None
    finally:
        page.post(f"/workers/{worker}/orders", {"order": "resume"})


def test_one_prompt_is_ended_by_its_job_and_the_next_one_runs(running: ComfyServer, page: Page, worker: str) -> None:
    page.wait_worker(worker, lambda found: found["state"] in ("idle", "drained"))
    page.post(f"/workers/{worker}/orders", {"order": "drain"})
    first, second = running.queue(prompt(201)), running.queue(prompt(202))
    live = running.until(lambda: [job for job in page.state()["jobs"].values() if job["state"] == "pending" and job["mine"]])
    oldest = min(live, key=lambda job: job["created_ms"])["id"]
    assert page.post("/master/interrupt", {"what": "job", "job": oldest})["prompts"] == 1
    page.post(f"/workers/{worker}/orders", {"order": "resume"})
    assert running.wait(second)["status"]["status_str"] == "success"
    assert (running.history(first) or {"status": {"status_str": "gone"}})["status"]["status_str"] != "success"


def test_comfyui_ends_while_a_page_looks(running: ComfyServer, page: Page) -> None:
    with page.events() as events:
        events.wait(lambda state: state["master"])
        assert running.stop() in (0, 130)
    assert "panel cannot read" not in running.log() and "please report" not in running.log()
