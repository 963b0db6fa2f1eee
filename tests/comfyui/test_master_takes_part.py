"""A real ComfyUI with the pack that takes part in its own jobs: on its own, beside workers, and when these die."""
from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from PIL import Image

from distributed_comfy.collector.file_formats import to_pixels
from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_prompts import pictures, upscale
from tests.comfyui.master_rig import Master, open_master
from tests.comfyui.plain_comfyui import PlainComfyUI
from tests.comfyui.server_rig import Listener
from tests.comfyui.tiny_prompts import distributed, plain_item
from tests.prompts import node, out


@pytest.fixture(scope="module")
def master(
    comfy: Comfy, packed_python: str, base_directory: Path, comfyui_rig: Rig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Master]:
    folder = tmp_path_factory.mktemp("master")
    with open_master(comfy, packed_python, base_directory, folder, comfyui_rig, DC_HOST="here", MASTER_LACKS_MEMORY="1") as found:
        yield found


def test_two_workers_and_the_master_make_the_batch_together(master: Master, plain: PlainComfyUI) -> None:
    prompt = distributed(seed=300, steps=6)
    prompt["9"]["inputs"]["items"] = 9
    ours = master.images(prompt)
    assert set(master.workers_of(master.last_job())) == {"one", "two", "here-master"}
    theirs = numpy.concatenate([plain.images(plain_item(seed=300 + index, steps=6), "8") for index in range(9)])
    assert ours.tobytes() == theirs.tobytes()


def test_alpha_and_values_beyond_zero_and_one_come_as_plain_comfyui_has_them_whoever_makes_them(
    master: Master, plain: PlainComfyUI
) -> None:
    prompt = pictures("untouched", items=9, seed=840, steps=20)
    prompt["image"]["inputs"] |= {"channels": 4, "batch_size": 2}
    ours = master.images(prompt)
    assert set(master.workers_of(master.last_job())) == {"one", "two", "here-master"}
    items = [{"image": node("RuleImage", **{**prompt["image"]["inputs"], "seed": 840 + index})} for index in range(9)]
    theirs = numpy.concatenate([plain.images(item, "image") for item in items])
    assert theirs.shape == (18, 16, 16, 4) and theirs.min() == -0.5 and theirs.max() > 1
    assert ours.dtype == numpy.float32 and ours.shape == theirs.shape
    assert ours.tobytes() == theirs.tobytes()


def test_by_default_there_is_one_item_more_than_workers(master: Master) -> None:
    master.server.execute(pictures("and the master", items=0, seed=5))
    assert master.recorded("and the master") == [5, 6, 7]


def test_what_feeds_all_items_runs_once_here(master: Master) -> None:
    prompt = pictures("shared", items=8, seed=50, steps=8)
    prompt["other"] = node("RuleImage", seed=1, width=16, height=16, batch_size=1, channels=3)
    prompt["work"]["inputs"]["images"] = out("blend")
    prompt["blend"] = node("ImageBatch", image1=out("image"), image2=out("other"))
    before = master.ran_here()
    master.server.execute(prompt)
    here = master.workers_of(master.last_job()).count("here-master")
    assert here > 1
    assert master.ran_here()[len(before):].count("RuleImage") == here + 1


def test_an_upscale_is_made_together_bit_for_bit(master: Master) -> None:
    prompt = upscale(3, seed=600, side=400)
    ours = master.images(prompt, "up")
    job = master.last_job()
    assert set(master.workers_of(job)) == {"one", "two", "here-master"}
    assert ours.tobytes() == master.headless(prompt, "up").tobytes()


def test_a_blocked_branch_gives_no_images_and_keeps_nothing_waiting(master: Master) -> None:
    prompt = pictures("blocked", items=5, steps=10)
    prompt["stop"] = node("ProbeBlock", images=out("work"), block=True, message="")
    prompt["9"]["inputs"]["images"] = out("stop")
    entry = master.server.execute(prompt)
    assert "show" not in entry["outputs"]
    assert master.state(master.last_job()) == "done"


def test_parallel_collectors_are_one_job(master: Master) -> None:
    prompt = {
        **pictures("both", items=6, seed=30, steps=10),
        "other": node("ImageInvert", image=out("work")),
        "10": node("DistributedCollector", images=out("other"), items=6),
        "show2": node("RuleRecord", images=out("10"), label="inverted"),
    }
    before = list(master.jobs())
    master.server.execute(prompt)
    assert master.recorded("both") == list(range(30, 36))
    assert len([job for job in master.jobs() if job not in before]) == 1


def test_an_item_that_fails_here_fails_the_prompt_and_ends_the_job(master: Master) -> None:
    prompt = pictures("fails", items=12, seed=20, steps=20)
    prompt["bad"] = node("RuleFail", images=out("work"), seed=out("seed"), bad_seed=25)
    prompt["9"]["inputs"]["images"] = out("bad")
    entry = master.server.wait(master.server.queue(prompt))
    kind, facts = entry["status"]["messages"][-1]
    assert kind == "execution_error" and facts["node_id"] in ("9", "bad"), "the collector's where a worker ran it, else its own"
    assert "seed 25 brings no luck" in facts["exception_message"]
    job = master.last_job()
    master.server.until(lambda: master.state(job) in ("failed", "cancelled"), 5.0)


def test_an_item_that_runs_out_of_memory_here_is_made_elsewhere(master: Master) -> None:
    prompt = pictures("too large", items=8, seed=70, steps=15)
    prompt["large"] = node("MasterLacksMemory", images=out("work"))
    prompt["9"]["inputs"]["images"] = out("large")
    master.server.execute(prompt)
    assert master.recorded("too large") == list(range(70, 78))
    assert set(master.workers_of(master.last_job())) == {"one", "two"}
    assert master.server.log().count("ran out of memory here") == 1


def test_interrupt_ends_what_runs_here_and_on_workers(master: Master) -> None:
    with master.server.listen() as listener:
        _interrupted(master, listener)
        master.server.until(lambda: re.fullmatch("interrupted at [0-6] of 6 items", listener.texts("9")[-1]), 5.0)
    master.server.execute(pictures("after that", items=4, seed=1))
    assert master.recorded("after that") == [1, 2, 3, 4]


def _interrupted(master: Master, listener: Listener) -> None:
    prompt_id = master.server.queue(pictures("interrupted", items=6, seed=90, steps=1000), client_id=listener.client_id)
    job = master.server.until(lambda: [job for job, state in master.jobs().items() if state.state == "running"])[-1]
    master.server.until(lambda: len([name for name in master.workers_of(job) if name]) == 3)
    time.sleep(0.5)
    began = time.monotonic()
    master.server.post("/interrupt")
    master.server.until(lambda: master.state(job) == "cancelled", 4.0)
    assert time.monotonic() - began < 2
    assert master.server.wait(prompt_id)["status"]["messages"][-1][0] == "execution_interrupted"


@pytest.mark.parametrize("how", ["route", "flag"])
def test_workers_are_idle_within_two_seconds_also_while_a_node_here_heeds_no_interrupt(master: Master, how: str) -> None:
    prompt = pictures(f"deaf {how}", items=6, seed=400, steps=1000)
    prompt["deaf"] = node("UnevenDeaf", images=out("image"), seconds=8.0, interrupts=how == "flag")
    prompt["work"]["inputs"]["images"] = out("deaf")
    before = list(master.jobs())
    prompt_id = master.server.queue(prompt)
    job = master.job_of(before)
    master.server.until(lambda: {"one", "two", "here-master"} <= set(master.workers_of(job)))
    time.sleep(0.5)
    if how == "route":
        master.server.post("/interrupt", {"prompt_id": "another"})
        time.sleep(0.5)
        assert master.state(job) == "running" and not master.rig.is_idle(), "another prompt was meant"
        began = time.monotonic()
        master.server.post("/interrupt", {"prompt_id": prompt_id})
        master.server.until(master.rig.is_idle, 4.0)
        assert time.monotonic() - began < 2
    else:  # it is set halfway
        master.server.until(master.rig.is_idle, 8.0)
    assert master.state(job) == "cancelled"
    assert prompt_id not in master.server.get(f"/history/{prompt_id}"), "its node goes on for some seconds"
    assert master.server.wait(prompt_id)["status"]["messages"][-1][0] == "execution_interrupted"
    master.server.execute(pictures(f"after {how}", items=4, seed=1))
    assert master.recorded(f"after {how}") == [1, 2, 3, 4]


def saved_in(master: Master, folder: str) -> dict[str, int]:
    """Files that a collector saved there, and when."""
    found = sorted((master.server.base / "output" / folder).glob("*.png"))
    return {path.name: path.stat().st_mtime_ns for path in found}


def test_what_is_collected_is_saved_while_the_rest_is_made_and_shown_at_the_node(master: Master) -> None:
    prompt, path = master.dumped(pictures("saved", items=9, seed=500, steps=25, save_prefix="kept/%width%/pic"))
    with master.server.listen() as listener:
        prompt_id = master.server.queue(prompt, client_id=listener.client_id)
        master.server.until(lambda: saved_in(master, "kept/16"))
        assert master.server.history(prompt_id) is None, "the prompt is not over"
        entry = master.server.wait(prompt_id)
        assert entry["status"]["status_str"] == "success"
        names = [f"pic_{number:05}_.png" for number in range(1, 10)]
        shown = [{"filename": name, "subfolder": "kept/16", "type": "output"} for name in names]
        told = [event for event in listener.of("executed") if event["data"]["output"].get("images") == shown]
        assert [event["data"]["display_node"] for event in told] == ["9"]
    assert list(saved_in(master, "kept/16")) == names
    assert [output["images"] for output in entry["outputs"].values() if output.get("images") == shown] == [shown]
    assert "here-master" in master.workers_of(master.last_job())
    for index, (name, image) in enumerate(zip(names, numpy.load(path), strict=True)):
        with Image.open(master.server.base / "output" / "kept" / "16" / name) as opened:
            assert numpy.array_equal(numpy.asarray(opened), to_pixels(image)), name
            assert json.loads(opened.text["prompt"]) == prompt and opened.text["seed"] == str(500 + index)  # type: ignore[attr-defined]


def test_an_interrupted_prompt_leaves_the_files_of_what_was_finished_and_the_next_run_adds_the_rest(master: Master) -> None:
    prompt = pictures("goes on", items=9, seed=600, steps=40, save_prefix="cut/pic")
    prompt_id = master.server.queue(prompt)
    master.server.until(lambda: len(saved_in(master, "cut")) > 1)
    master.server.post("/interrupt")
    assert master.server.wait(prompt_id)["status"]["messages"][-1][0] == "execution_interrupted"
    time.sleep(1.0)  # what had arrived is still being saved
    before = saved_in(master, "cut")
    assert 1 < len(before) < 9
    master.server.execute(prompt)
    after = saved_in(master, "cut")
    assert list(after) == [f"pic_{number:05}_.png" for number in range(1, 10)] and before.items() <= after.items()
    assert master.recorded("goes on") == list(range(600, 609))


def test_a_second_run_is_cached_although_items_ran_here(master: Master) -> None:
    prompt = pictures("cached here", items=5, seed=44, steps=10)
    master.server.execute(prompt)
    before, here = list(master.jobs()), master.ran_here()
    master.server.execute(prompt)
    assert list(master.jobs()) == before and master.ran_here() == here
    changed = {**prompt, "show": node("RuleRecord", images=out("9"), label="behind")}
    master.server.execute(changed)
    assert master.recorded("behind") == [44, 45, 46, 47, 48]
