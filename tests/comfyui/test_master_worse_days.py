"""Worse days of a master: hosts that are not alike, memory that is too small, prompts that change while they run, all workers gone."""
from __future__ import annotations

import base64
import io
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from PIL import Image

from distributed_comfy.collector.spool import ENDED
from distributed_comfy.pack_token import FILE_NAME
from distributed_comfy.panel.token import HEADER, read_token
from distributed_comfy.state.keys import Keys
from tests.cluster_fixtures import open_rig
from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_prompts import Prompt, pictures, plain_work
from tests.comfyui.master_rig import Master, open_master
from tests.comfyui.server_rig import Event
from tests.comfyui.test_master_bad_days import OwnServers, running, slow
from tests.prompts import node, out


@pytest.fixture(scope="module")
def master(
    comfy: Comfy, packed_python: str, base_directory: Path, comfyui_rig: Rig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Master]:
    """It only orchestrates, if a test does not say otherwise; its workers are ComfyUIs, too."""
    folder = tmp_path_factory.mktemp("master")
    with open_master(comfy, packed_python, base_directory, folder, comfyui_rig, options={"participate": False}, DC_HOST="here") as found:
        yield found


@pytest.fixture(scope="module")
def own_servers(cluster_servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServers]:
    servers = OwnServers(tmp_path_factory.mktemp("servers"), cluster_servers.program)
    yield servers
    servers.close()


@pytest.fixture(scope="module")
def frail(
    comfy: Comfy, packed_python: str, base_directory: Path, own_servers: OwnServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Master]:
    """One whose servers, workers and self are stopped by tests; it lacks a class, and makes no large frames."""
    with open_rig("builtin", own_servers, tmp_path_factory.mktemp("workers")) as rig, open_master(
        comfy, packed_python, base_directory, tmp_path_factory.mktemp("frail"), rig, options={"participate": False},
        DC_HOST="here", MASTER_LACKS_CLASS="1", DC_BLOB_LIMIT_BYTES=str(2**20),
    ) as found:  # fmt: skip
        yield found


@contextmanager
def taking_part(master: Master) -> Iterator[None]:
    """While the context lasts the master runs items itself."""
    token = {HEADER.replace("-", "_"): read_token(master.server.line.folder / FILE_NAME)}

    def participate(value: bool) -> None:
        assert master.server.post("/distributed_comfy/options", {"participate": value}, **token)[0] == 200

    participate(True)
    try:
        yield
    finally:
        participate(False)


def through(class_type: str, prompt: Prompt) -> Prompt:
    """The prompt with one more node before its collector."""
    name, collector = f"through{len(prompt)}", prompt["9"]
    more = {name: node(class_type, images=collector["inputs"]["images"])}
    return {**prompt, **more, "9": {**collector, "inputs": {**collector["inputs"], "images": out(name)}}}


def failure(master: Master, prompt: Prompt) -> dict[str, Any]:
    """What the page is told of a prompt that fails; the history says the same."""
    with master.server.listen() as listener:
        prompt_id = master.server.queue(prompt, client_id=listener.client_id)
        event: Event = listener.wait("execution_error", timeout_s=60)
    facts: dict[str, Any] = event["data"]
    assert facts["prompt_id"] == prompt_id
    assert master.server.wait(prompt_id)["status"]["messages"][-1][1]["exception_message"] == facts["exception_message"]
    return facts


def with_batch(size: int, prompt: Prompt) -> Prompt:
    """The prompt with that many pictures per item."""
    image = prompt["image"]
    return {**prompt, "image": {**image, "inputs": {**image["inputs"], "batch_size": size}}}


# -- hosts that are not alike ------------------------------------------------------------------------------------------------
def test_items_go_to_the_worker_whose_node_pack_could_be_imported(master: Master) -> None:
    master.server.execute(through("UnevenTwo", pictures("only two", items=3)))
    assert master.recorded("only two") == [100, 101, 102]
    assert master.workers_of(master.last_job()) == ["two"] * 3


def test_where_nobody_has_all_classes_the_node_says_who_lacks_which(master: Master) -> None:
    facts = failure(master, through("UnevenOne", through("UnevenTwo", pictures("nobody", items=3))))
    assert facts["node_id"] == "9"
    assert "one lacks node class UnevenTwo; two lacks node class UnevenOne; this ComfyUI lacks node class" in facts["exception_message"]
    assert "install it on one of them, and queue the prompt again" in facts["exception_message"]


def test_a_worker_with_another_version_of_a_node_leaves_the_items_to_the_others(master: Master) -> None:
    master.server.execute(through("UnevenNewerOne", pictures("newer one", items=3)))
    assert master.recorded("newer one") == [100, 101, 102]
    assert master.workers_of(master.last_job()) == ["two"] * 3


def test_where_all_workers_have_another_version_the_master_makes_all_of_it(master: Master) -> None:
    master.server.execute(through("UnevenNewerWorkers", pictures("newer workers", items=3)))
    assert master.recorded("newer workers") == [100, 101, 102]
    job = master.last_job()
    assert master.workers_of(job) == ["here-master"] * 3
    assert f"job {job}: no live worker can run it (one could not; two could not); this ComfyUI runs all of it" in master.server.log()


def test_an_item_with_a_model_that_nobody_has_waits_aloud_and_the_master_makes_the_others(master: Master) -> None:
    prompt = through("UnevenModel", pictures("no such model", items=4))
    values = '{"_type": "COMBO", "1": "none.safetensors"}'
    prompt["models"] = node("DistributedValue", default_value="everywhere.safetensors", worker_values=values)
    prompt["through5"]["inputs"]["model"] = out("models")
    with master.server.listen() as listener:
        before = list(master.jobs())
        prompt_id = master.server.queue(prompt, client_id=listener.client_id)
        job = master.job_of(before)
        waits = "3 of 4 items; waiting: no live worker can run it ("
        master.server.until(lambda: [text for text in texts(listener.binary) if waits in text])
        told = texts(listener.binary)[-1]
        claims = events_of(master, job, "claimed")
        time.sleep(2)
        assert events_of(master, job, "claimed") == claims == 3, "the item is not taken and given back again and again"
        master.server.post("/interrupt")
        master.server.until(lambda: master.state(job) == "cancelled", 4.0)
    assert "one lacks model 'none.safetensors' for UnevenModel.model; two lacks model 'none.safetensors'" in told
    assert told.endswith(", and this ComfyUI lacks model 'none.safetensors' (item 1); start one that can, or interrupt")
    assert master.workers_of(job) == ["here-master", "", "here-master", "here-master"]
    assert master.server.wait(prompt_id)["status"]["messages"][-1][0] == "execution_interrupted"
    lines = [line for line in master.server.log().splitlines() if f"job {job}: no live worker" in line]
    assert len(lines) == 1 and lines[0].endswith("(item 1); it waits for one")


def events_of(master: Master, job: str, kind: str) -> int:
    """How many of a job's events are of this kind."""
    return sum(event.kind == kind for event in master.rig.cluster.jobs.wait_events(job, "0", 0.01)[1])


def test_where_the_master_cannot_either_the_error_tells_of_the_versions(master: Master) -> None:
    """Worker two lacks the class that only worker one has, and worker one has another version of the other."""
    message = failure(master, through("UnevenOne", through("UnevenNewerOne", pictures("versions", items=2))))["exception_message"]
    assert "on worker one: the prompt is not valid" in message and "(UnevenNewerOne): Required input is missing: strength" in message
    assert "that worker has another version of the node; update its node packs" in message


def test_a_node_that_raises_on_one_worker_only_is_told_with_that_worker(master: Master) -> None:
    facts = failure(master, through("UnevenFails", pictures("fails", items=3)))
    assert "on worker one: node through5 (UnevenFails) raised RuntimeError: no kernel image is available" in facts["exception_message"]
    assert master.state(master.last_job()) == "failed"
    master.rig.wait_idle()


def test_a_node_that_raises_in_an_item_of_the_master_is_shown_at_that_node(master: Master) -> None:
    with taking_part(master):
        facts = failure(master, through("UnevenFailsHere", pictures("fails here", items=9, steps=10)))
    assert (facts["node_id"], facts["node_type"]) == ("through5", "UnevenFailsHere")
    assert facts["exception_message"].startswith("no kernel image is available for execution on the master")
    master.server.until(lambda: master.state(master.last_job()) in ("failed", "cancelled") and master.rig.is_idle(), 5.0)


# -- memory ------------------------------------------------------------------------------------------------------------------
def test_a_worker_without_enough_memory_leaves_its_items_to_the_other_one(master: Master) -> None:
    """It finds out at once, again and again, while the other one is busy."""
    prompt = through("RuleSlow", with_batch(2, through("UnevenMemory", pictures("for two", items=3))))
    prompt["through6"]["inputs"]["milliseconds"] = 1000
    master.server.execute(prompt)
    assert master.workers_of(master.last_job()) == ["two"] * 3
    assert master.recorded("for two") == [seed for seed in (100, 101, 102) for _ in range(2)]


def test_what_fits_no_worker_is_made_by_the_master(master: Master) -> None:
    master.server.execute(with_batch(3, through("UnevenMemory", pictures("for the master", items=2))))
    assert master.workers_of(master.last_job()) == ["here-master"] * 2
    assert master.recorded("for the master") == [100, 100, 100, 101, 101, 101]


def test_what_fits_nobody_fails_with_what_to_do(master: Master) -> None:
    with taking_part(master):
        facts = failure(master, with_batch(4, through("UnevenMemory", pictures("for nobody", items=3))))
    assert "ran out of memory in node through5" in facts["exception_message"]
    remedy = "ask for a smaller batch_size or smaller images, give the worker --lowvram, or run it where there is more memory"
    assert remedy in facts["exception_message"]
    master.rig.wait_idle()


def test_a_collected_batch_that_does_not_fit_here_is_told_and_not_made_again(master: Master) -> None:
    prompt = pictures("large", items=40, side=1024)
    prompt["part"] = node("ImageCrop", image=out("9"), width=16, height=16, x=0, y=0)
    prompt["show"]["inputs"]["images"] = out("part")
    process = psutil.Process(master.server.running.pid)
    process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms + 300 * 2**20, resource.RLIM_INFINITY))
    try:
        facts = failure(master, prompt)
    finally:
        process.rlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert "the 40 items that node 9 collected (503 MB) do not fit into the memory of this ComfyUI" in facts["exception_message"]
    assert "ask for fewer items or smaller images" in facts["exception_message"]
    master.server.until(lambda: all((path / ENDED).exists() for path in master.spools()), 5.0)
    master.server.execute(prompt)
    assert master.recorded("large") == list(range(100, 140))
    assert master.rig.executions(master.last_job()) == []


def test_an_item_that_is_over_the_limit_of_a_frame_here_fails_the_node_with_the_setting(frail: Master) -> None:
    with taking_part(frail):
        facts = failure(frail, slow("frames", 12, milliseconds=100, side=512))
    assert "raise DC_BLOB_LIMIT_BYTES or use smaller batches" in facts["exception_message"]
    frail.server.until(lambda: frail.state(frail.last_job()) == "failed", 5.0)


# -- prompts that change, two tabs, a queue that is cleared ------------------------------------------------------------------
def test_a_prompt_that_is_edited_and_queued_again_does_not_mix_with_what_runs(master: Master) -> None:
    with taking_part(master):
        first = master.server.queue(pictures("first", items=6, seed=100, steps=20))
        master.server.until(lambda: running(master.rig, master.last_job()))
        second = master.server.queue(pictures("second", items=4, seed=900, steps=3, side=24))
        edited = through("ImageInvert", pictures("third", items=6, seed=100, steps=20))
        edited["through5"]["inputs"] = {"image": edited["through5"]["inputs"]["images"]}
        third = master.server.queue({**edited, "raw": node("RuleRecord", images=out("work"), label="beside")})
        assert [master.server.wait(one)["status"]["status_str"] for one in (first, second, third)] == ["success"] * 3
    assert master.recorded("first") == list(range(100, 106))
    assert master.recorded("second") == list(range(900, 904))
    assert master.recorded("beside") == [100]
    folder = master.server.base / "output"
    made = {label: json.loads((folder / f"{label}.json").read_text())["images"] for label in ("first", "second", "third")}
    assert [len(made[label][0]) for label in ("first", "second")] == [16, 24]
    assert [1 - image[0][0][0] for image in made["third"]] == list(range(100, 106))


def test_each_tab_gets_its_own_and_an_interrupt_concerns_what_comfyuis_own_would(master: Master) -> None:
    png = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(png, "PNG")
    with master.server.listen() as one, master.server.listen() as two:
        before = list(master.jobs())
        first = master.server.queue(pictures("tab one", items=2, seed=1000, steps=2000), client_id=one.client_id)
        job = master.job_of(before)
        second = master.server.queue(pictures("tab two", items=2, seed=2000), client_id=two.client_id)
        cluster = master.rig.cluster
        step = {"index": 0, "worker": "one", "node": "work", "preview": base64.b64encode(png.getvalue()).decode()}
        channel = Keys(cluster.settings.key_prefix)("progress", job)
        master.server.until(lambda: cluster.client.publish(channel, json.dumps(step)) and [seen for seen in one.binary if seen[3] == 1])
        master.server.post("/interrupt", {"prompt_id": second})
        time.sleep(1)
        assert master.state(job) == "running" and len(master.jobs()) == len(before) + 2, "it waits, so there is nothing to interrupt"
        master.server.post("/interrupt", {"prompt_id": first})
        master.server.until(lambda: master.state(job) == "cancelled", 2.0)
        two.wait_end(second)
        shown = two.wait("executed", lambda event: event["data"]["node"] == "show")
    assert shown["data"]["output"]["records"][0]["filename"] == "tab two.json"
    assert master.recorded("tab two") == [2000, 2001]
    assert master.server.wait(first)["status"]["messages"][-1][0] == "execution_interrupted"
    assert not one.of("executed", prompt_id=second) and not one.of("progress", prompt_id=second)
    assert not [seen for seen in two.binary if seen[3] == 1], "previews of the other tab"


def test_clearing_the_queue_stops_engines_and_leaves_nothing(master: Master) -> None:
    busy = master.server.queue(plain_work("busy", steps=250, salt=77))
    before = list(master.jobs())
    prompt_id = master.server.queue(pictures("cleared", items=4, seed=90, steps=2000))
    job = master.job_of(before)
    master.server.until(lambda: len(running(master.rig, job)) == 2)
    master.server.post("/queue", {"clear": True})
    master.server.until(lambda: master.state(job) == "cancelled" and master.rig.is_idle(), 2.0)
    master.server.until(lambda: not [path for path in master.spools() if path.name == job], 5.0)
    with redis.Redis.from_url(master.rig.cluster.blob_url) as blobs:
        assert not blobs.keys(f"*{job}*")
    assert master.server.wait(busy)["status"]["status_str"] == "success"
    assert master.server.history(prompt_id) is None


# -- what dies and comes back ------------------------------------------------------------------------------------------------
def test_a_node_whose_workers_all_die_says_so_and_goes_on_when_one_starts(frail: Master) -> None:
    rig = frail.rig
    with frail.server.listen() as listener:
        before = list(frail.jobs())
        prompt_id = frail.server.queue(through("RuleForeign", slow("left alone", 3)), client_id=listener.client_id)
        job = frail.job_of(before)
        frail.server.until(lambda: len(running(rig, job)) == 1 and done(rig, job) == 2 and len(rig.executions(job)) == 3)
        for name in list(rig.workers):
            rig.workers.pop(name).kill()
        frail.server.until(lambda: [text for text in texts(listener.binary) if "2 of 3 items; waiting: no live worker can run it" in text])
        assert "start one that can, or interrupt" in texts(listener.binary)[-1]
        rig.start("three", "four")
        assert frail.server.wait(prompt_id)["status"]["status_str"] == "success"
    assert frail.recorded("left alone") == [100, 101, 102]
    assert "waiting" not in texts(listener.binary)[-1]
    assert len(rig.executions(job)) == 4


def done(rig: Rig, job: str) -> int:
    """How many items of a job are."""
    return sum(state.state == "done" for state in rig.cluster.jobs.item_states(job).values())


def texts(messages: list[bytes]) -> list[str]:
    """What was written at nodes."""
    return [message[8 + message[7]:].decode() for message in messages if message[:4] == b"\0\0\0\3"]


def test_a_server_that_is_away_for_long_is_told_at_the_node_and_costs_nothing(frail: Master, own_servers: OwnServers) -> None:
    with taking_part(frail), frail.server.listen() as listener:
        before = list(frail.jobs())
        prompt_id = frail.server.queue(slow("away", 12), client_id=listener.client_id)
        job = frail.job_of(before)
        frail.server.until(lambda: "here-master" in [state.worker for state in running(frail.rig, job)])
        own_servers.restart_state(away_s=10.0)
        assert frail.server.wait(prompt_id)["status"]["status_str"] == "success"
    assert frail.recorded("away") == list(range(100, 112))
    assert [text for text in texts(listener.binary) if "waiting: " in text and "Redis" in text], texts(listener.binary)


def test_after_ctrl_c_the_same_prompt_goes_on_and_nothing_is_left(frail: Master) -> None:
    prompt = slow("stopped", 9)
    with taking_part(frail):
        before = list(frail.jobs())
        frail.server.queue(prompt)
        job = frail.job_of(before)
        frail.server.until(lambda: done(frail.rig, job) >= 4 and "here-master" in [state.worker for state in running(frail.rig, job)])
        frail.server.stop()
        frail.restart()
        assert frail.server.get("/history") == {} and not (frail.server.base / "output" / "stopped.json").exists()
        frail.server.execute(prompt)
    assert frail.recorded("stopped") == list(range(100, 109))
    assert f"goes on where job {job} stopped" in frail.server.log()
    assert len(frail.rig.executions(frail.last_job())) <= 5
    frail.server.until(lambda: not frail.spools(), 10.0)
    kept = frail.server.line.folder / "cache" / "comfyui-jobs"
    assert not [path for folder in (frail.server.base / "temp", kept) for path in folder.rglob("*") if path.is_file()]
