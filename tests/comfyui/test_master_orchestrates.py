"""A real ComfyUI with the pack that only orchestrates, driven as a script does that knows nothing of us.

It has none of the models that its prompts name: only workers do.
"""
from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from distributed_comfy.state.keys import Keys
from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_prompts import pictures, plain_work, upscale
from tests.comfyui.master_rig import Master, open_master
from tests.comfyui.plain_comfyui import PlainComfyUI
from tests.comfyui.test_cluster_exactness import VARIANTS
from tests.comfyui.tiny_prompts import distributed, plain_item
from tests.prompts import node, out


@pytest.fixture(scope="module")
def master(
    comfy: Comfy, packed_python: str, base_directory: Path, comfyui_rig: Rig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Master]:
    folder = tmp_path_factory.mktemp("master")
    with open_master(
        comfy, packed_python, base_directory, folder, comfyui_rig, models=False, options={"participate": False}, MASTER_LACKS_CLASS="1"
    ) as found:
        yield found


# -- what comes out --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_batch_is_what_plain_comfyui_makes_of_each_seed(master: Master, plain: PlainComfyUI, variant: str) -> None:
    tail = VARIANTS[variant]
    end = "end" if tail else "8"
    ours = master.images(distributed(tail, end, seed=100))
    assert set(master.workers_of(master.last_job())) <= {"one", "two"}
    theirs = numpy.concatenate([plain.images(plain_item(tail, end, seed=100 + index), end) for index in range(2)])
    assert ours.dtype == numpy.float32 and ours.shape == theirs.shape
    assert ours.tobytes() == theirs.tobytes()


def test_items_run_in_order_of_seeds_however_many_and_nothing_before_the_collector_runs_here(master: Master) -> None:
    before = master.ran_here()
    with master.server.listen() as listener:
        prompt_id = master.server.queue(pictures("many", items=7, seed=40), client_id=listener.client_id)
        listener.wait_end(prompt_id)
    assert master.recorded("many") == [40, 41, 42, 43, 44, 45, 46]
    assert master.ran_here() == [*before, "RuleRecord"]
    executed = {event["data"]["node"] for event in listener.of("executing", prompt_id=prompt_id)}
    assert executed == {"9", "show", None}


def test_by_default_there_is_one_item_for_each_worker(master: Master) -> None:
    master.server.execute(pictures("default", items=0, seed=5))
    assert master.recorded("default") == [5, 6]


def test_a_masks_latents_and_sound_collector_gives_all_of_them(master: Master) -> None:
    prompt: dict[str, Any] = {
        **pictures("slots", items=3, seed=9),
        "mask": node("RuleMask", images=out("image")),
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=2),
    }
    prompt["9"]["inputs"] |= {"masks": out("mask"), "latents": out("latent")}
    prompt["show"]["inputs"] |= {"mask": out("9", 3), "latent": out("9", 2), "audio": out("9", 1)}
    master.server.execute(prompt)
    assert master.recorded("slots") == [9, 10, 11]


@pytest.mark.parametrize(("channels", "batch_size"), [(4, 1), (4, 3), (3, 5), (1, 2)])
def test_alpha_batches_and_values_beyond_zero_and_one_come_as_plain_comfyui_has_them(
    master: Master, plain: PlainComfyUI, channels: int, batch_size: int
) -> None:
    seeds = range(810 + 10 * channels + batch_size, 813 + 10 * channels + batch_size)
    prompt = pictures("untouched", items=3, seed=seeds[0])
    prompt["image"]["inputs"] |= {"channels": channels, "batch_size": batch_size}
    ours = master.images(prompt)
    assert set(master.workers_of(master.last_job())) <= {"one", "two"}
    items = [{"image": node("RuleImage", **{**prompt["image"]["inputs"], "seed": seed})} for seed in seeds]
    theirs = numpy.concatenate([plain.images(item, "image") for item in items])
    assert theirs.shape == (3 * batch_size, 16, 16, channels) and theirs.min() == -0.5 and theirs.max() > 1
    assert ours.dtype == numpy.float32 and ours.shape == theirs.shape
    assert ours.tobytes() == theirs.tobytes()


def test_the_metadata_of_a_saved_image_holds_the_users_prompt(master: Master) -> None:
    entry = master.server.execute(distributed(seed=700), extra_data={"extra_pnginfo": {"workflow": {"mine": True}}})
    image = entry["outputs"]["10"]["images"][0]
    with Image.open(master.server.base / "output" / image["filename"]) as picture:
        saved = json.loads(picture.info["prompt"])
        assert {node_id: one["class_type"] for node_id, one in saved.items()} == {
            node_id: one["class_type"] for node_id, one in distributed().items()
        }
        assert saved["1"]["inputs"]["unet_name"] == "tiny_mmdit.safetensors"
        assert saved["6"]["inputs"]["seed"] == 700
        assert picture.info["workflow"] == '{"mine": true}'


def test_an_upscale_is_what_the_command_line_makes_and_no_model_loads_here(master: Master) -> None:
    prompt = upscale(2, seed=500)
    ours = master.images(prompt, "up")
    assert ours.shape == (2, 200, 200, 3)
    assert ours.tobytes() == master.headless(prompt, "up").tobytes()
    assert "Requested to load" not in master.server.log()


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (4, "RGBA")])
def test_a_saved_picture_of_a_worker_has_the_bytes_of_plain_comfyuis(
    master: Master, plain: PlainComfyUI, channels: int, mode: str
) -> None:
    prompt = pictures(f"saved {mode}", items=2, seed=870 + channels)
    prompt["image"]["inputs"] |= {"channels": channels, "batch_size": 2}
    prompt["save"] = node("SaveImage", images=out("9"), filename_prefix=mode)
    shown = master.server.execute(prompt)["outputs"]["save"]["images"]
    whole = {str(seed): node("RuleImage", **{**prompt["image"]["inputs"], "seed": 870 + channels + seed}) for seed in range(2)}
    whole["both"] = node("ImageBatch", image1=out("0"), image2=out("1"))
    whole["save"] = node("SaveImage", images=out("both"), filename_prefix=mode)
    expected = plain.execute(whole)["outputs"]["save"]["images"]
    assert len(shown) == len(expected) == 4
    for ours, theirs in zip(shown, expected, strict=True):
        with Image.open(master.server.base / "output" / ours["filename"]) as one, Image.open(plain.output / theirs["filename"]) as other:
            assert one.mode == other.mode == mode
            assert one.tobytes() == other.tobytes()


# -- how it goes -----------------------------------------------------------------------------------------------------------
def test_the_node_shows_how_many_items_are_done_and_who_works(master: Master) -> None:
    with master.server.listen() as listener:
        prompt_id = master.server.queue(pictures("progress", items=6, steps=30), client_id=listener.client_id)
        listener.wait_end(prompt_id)
    shown = [(event["data"]["value"], event["data"]["max"]) for event in listener.of("progress", prompt_id=prompt_id)]
    assert {most for _, most in shown} == {6}
    assert shown[-1] == (6, 6) and shown == sorted(shown)
    texts = listener.texts("9")
    assert any(text.startswith("2 of 6 items") for text in texts), texts
    assert any("one " in text and "/30" in text for text in texts), texts


def test_previews_of_workers_reach_the_client_that_queued_the_prompt(master: Master) -> None:
    """What a worker publishes; with the models of tests no sampler has a preview."""
    png = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(png, "PNG")
    with master.server.listen() as listener:
        prompt_id = master.server.queue(pictures("previews", items=2, seed=210, steps=150), client_id=listener.client_id)
        job = master.server.until(lambda: [job for job, state in master.jobs().items() if state.state == "running"])[-1]
        cluster = master.rig.cluster
        channel = Keys(cluster.settings.key_prefix)("progress", job)
        step = {"index": 0, "worker": "one", "node": "work", "preview": base64.b64encode(png.getvalue()).decode()}
        master.server.until(lambda: cluster.client.publish(channel, json.dumps(step)) and [one for one in listener.binary if one[3] == 1])
        listener.wait_end(prompt_id)
    shown = next(message for message in listener.binary if message[:4] == b"\0\0\0\1")
    assert Image.open(io.BytesIO(shown[8:])).size == (512, 512)  # as large as ComfyUI's own


def test_comfyui_answers_while_a_node_waits_for_workers(master: Master) -> None:
    """Its loop is not held up; the bound is generous because the workers of tests share the processors with it."""
    prompt = pictures("answers", items=8, seed=230, steps=60)
    prompt_id = master.server.queue(prompt)
    asked, opened = [], []
    master.server.until(lambda: (jobs := master.jobs()) and list(jobs.values())[-1].state == "running")
    while master.server.history(prompt_id) is None:
        began = time.monotonic()
        assert master.server.ask("GET", "/system_stats")[0] == 200
        asked.append(time.monotonic() - began)
        began = time.monotonic()
        with master.server.listen() as listener:
            listener.wait("status", timeout_s=10.0)
            opened.append(time.monotonic() - began)
    assert master.recorded("answers") == list(range(230, 238))
    assert len(asked) >= 10, "too few while it waited"
    for name, times in (("GET /system_stats", asked), ("the first word of a websocket", opened)):
        assert numpy.percentile(times, 95) < 0.5, f"{name}: {sorted(times)[-5:]}"


@pytest.mark.parametrize("busy_s", [10, pytest.param(45, marks=pytest.mark.comfyui_long)])
def test_items_run_while_an_earlier_prompt_keeps_the_master_busy(master: Master, busy_s: int) -> None:
    first = master.server.queue(plain_work("busy", steps=50 * busy_s))
    before = list(master.jobs())
    second = master.server.queue(pictures("meanwhile", items=4, seed=busy_s, steps=25))
    job = master.job_of(before)
    master.server.until(lambda: master.state(job) == "done", busy_s - 1.0)
    assert master.server.history(first) is None
    assert master.server.wait(first)["status"]["status_str"] == "success"
    assert master.server.wait(second)["status"]["status_str"] == "success"
    assert master.recorded("meanwhile") == [busy_s + index for index in range(4)]


def test_a_second_run_comes_from_the_cache_and_no_worker_runs_anything(master: Master) -> None:
    prompt = pictures("cached", items=3, seed=60)
    master.server.execute(prompt)
    before = list(master.jobs())
    with master.server.listen() as listener:
        prompt_id = master.server.queue(prompt, client_id=listener.client_id)
        listener.wait_end(prompt_id)
    assert "9" in listener.of("execution_cached", prompt_id=prompt_id)[0]["data"]["nodes"]
    time.sleep(0.5)
    assert list(master.jobs()) == before


def test_a_cached_collector_with_other_nodes_behind_it_ends_its_job_at_once(master: Master) -> None:
    prompt = pictures("first look", items=3, seed=61, steps=5)
    master.server.execute(prompt)
    before = list(master.jobs())
    master.server.execute({**prompt, "show": node("RuleRecord", images=out("9"), label="second look")})
    assert master.recorded("second look") == [61, 62, 63]
    assert master.recorded("first look") == [61, 62, 63]
    time.sleep(1.0)  # it may have been known before the job was queued
    assert [master.state(job) for job in master.jobs() if job not in before] in ([], ["cancelled"])


def test_a_prompt_like_one_that_failed_is_queued_at_once(master: Master) -> None:
    prompt = pictures("never twice", items=2, seed=65, steps=500)
    first = master.server.queue(prompt)
    job = master.server.until(lambda: [job for job, state in master.jobs().items() if state.state == "running"])[-1]
    master.server.post("/interrupt")
    master.server.until(lambda: master.state(job) == "cancelled", 5.0)
    master.server.wait(first)
    busy = master.server.queue(plain_work("busy before", 100, salt=2))
    before = list(master.jobs())
    second = master.server.queue(prompt)
    assert master.job_of(before)
    assert master.server.history(busy) is None
    master.server.post("/queue", {"delete": [second]})
    master.server.wait(busy)


def test_two_tabs_get_each_their_own(master: Master) -> None:
    with master.server.listen() as one, master.server.listen() as two:
        ids = [
            master.server.queue(pictures(f"tab{number}", items=3, seed=1000 * number, steps=10), client_id=tab.client_id)
            for number, tab in ((1, one), (2, two))
        ]
        one.wait_end(ids[0])
        two.wait_end(ids[1])
    assert master.recorded("tab1") == [1000, 1001, 1002]
    assert master.recorded("tab2") == [2000, 2001, 2002]
    assert {event["data"]["prompt_id"] for event in one.of("progress")} == {ids[0]}
    assert {event["data"]["prompt_id"] for event in two.of("progress")} == {ids[1]}


# -- stopping --------------------------------------------------------------------------------------------------------------
def test_interrupt_reaches_the_engines_of_this_job_within_two_seconds_and_no_other(master: Master) -> None:
    prompt = pictures("interrupted", items=2, seed=70)
    prompt["work"] = node("ProbeTicks", images=out("image"), steps=2000)
    ticks, before = master.ticks(), list(master.jobs())
    running = master.server.queue(prompt)
    job = master.job_of(before)
    master.server.until(lambda: len(master.ticks()) == len(ticks) + 2 and min(map(len, master.ticks().values())) > 10)
    assert sorted(master.workers_of(job)) == ["one", "two"]
    waiting = master.server.queue(pictures("goes on", items=2, seed=80, steps=5))
    master.server.until(lambda: len(master.jobs()) == len(before) + 2)
    time.sleep(0.5)
    began = time.monotonic()
    master.server.post("/interrupt")
    master.server.until(lambda: master.state(job) == "cancelled", 2.0)
    assert time.monotonic() - began < 2
    entry = master.server.wait(running)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert master.rig.cluster.jobs.job_state(job).reason == "its prompt is interrupted"
    assert master.server.log().count(f"job {job} is cancelled") == 1
    assert master.server.wait(waiting, 20)["status"]["status_str"] == "success"
    assert master.recorded("goes on") == [80, 81]
    last = {process: times[-1] - began for process, times in master.ticks().items() if process not in ticks}
    assert len(last) == 2 and all(-0.5 < seconds < 2 for seconds in last.values()), f"the last steps of the engines: {last}"


def test_the_text_at_the_node_says_that_it_was_interrupted_until_the_next_run(master: Master) -> None:
    with master.server.listen() as listener:
        first = master.server.queue(pictures("text", items=2, seed=95, steps=2000), client_id=listener.client_id)
        master.server.until(lambda: any("/2000" in text for text in listener.texts("9")))
        master.server.post("/interrupt")
        listener.wait("execution_interrupted", lambda event: event["data"]["prompt_id"] == first)
        master.server.until(lambda: listener.texts("9")[-1] == "interrupted at 0 of 2 items", 5.0)
        shown = len(listener.texts("9"))
        master.server.wait(master.server.queue(pictures("text", items=2, seed=95, steps=5), client_id=listener.client_id))
        after = listener.texts("9")[shown:]
    assert not any("interrupted" in text for text in after) and after[-1] == "2 of 2 items"


def test_the_text_at_the_node_says_that_its_job_failed(master: Master) -> None:
    prompt = pictures("text of a failure", items=3, seed=24)
    prompt["bad"] = node("RuleFail", images=out("work"), seed=out("seed"), bad_seed=25)
    prompt["9"]["inputs"]["images"] = out("bad")
    with master.server.listen() as listener:
        prompt_id = master.server.queue(prompt, client_id=listener.client_id)
        listener.wait("execution_error", lambda event: event["data"]["prompt_id"] == prompt_id)
        master.server.until(lambda: listener.texts("9")[-1].startswith("failed at "), 5.0)


@pytest.mark.parametrize("how", ["delete", "clear"])
def test_a_prompt_that_leaves_the_queue_takes_its_job_with_it(master: Master, how: str) -> None:
    busy = master.server.queue(plain_work(f"busy for {how}", steps=200, salt=len(how)))
    before = list(master.jobs())
    prompt_id = master.server.queue(pictures("never", items=2, seed=90, steps=2000))
    job = master.job_of(before)
    master.server.post("/queue", {"clear": True} if how == "clear" else {"delete": [prompt_id]})
    master.server.until(lambda: master.state(job) == "cancelled", 2.0)
    assert master.server.wait(busy)["status"]["status_str"] == "success"
    assert master.server.history(prompt_id) is None
    master.server.until(lambda: not [path for path in master.spools() if path.name == job], 5.0)


# -- what fails ------------------------------------------------------------------------------------------------------------
def test_a_failed_item_fails_the_node_with_the_workers_own_error(master: Master) -> None:
    prompt = pictures("failed", items=3, seed=20)
    prompt["bad"] = node("RuleFail", images=out("work"), seed=out("seed"), bad_seed=21)
    prompt["9"]["inputs"]["images"] = out("bad")
    entry = master.server.wait(master.server.queue(prompt))
    kind, facts = entry["status"]["messages"][-1]
    assert kind == "execution_error" and facts["node_id"] == "9"
    message = facts["exception_message"]
    assert "item 1 on worker" in message and "node bad (RuleFail) raised ValueError: seed 21 brings no luck" in message
    assert 'rule_nodes.py", line' in message


def test_sizes_that_differ_fail_the_node_and_end_the_job(master: Master) -> None:
    prompt = pictures("sizes", items=8, seed=120, steps=25)
    prompt["image"]["inputs"]["grow"] = 5
    before = list(master.jobs())
    entry = master.server.wait(master.server.queue(prompt))
    kind, facts = entry["status"]["messages"][-1]
    assert kind == "execution_error" and "21 x 16" in facts["exception_message"] and "16 x 16" in facts["exception_message"]
    job = master.job_of(before)
    master.server.until(lambda: master.state(job) == "cancelled", 5.0)


def test_a_model_that_nobody_has_is_refused_and_the_answer_says_that_no_worker_has_it_either(master: Master) -> None:
    prompt = distributed()
    prompt["1"]["inputs"]["unet_name"] = "tiny_mmdlt.safetensors"
    status, answer = master.server.post("/prompt", {"prompt": prompt})
    assert status == 400
    (error,) = answer["node_errors"]["1"]["errors"]
    assert error["type"] == "value_not_in_list" and error["extra_info"]["received_value"] == "tiny_mmdlt.safetensors"
    words = "no worker has it either (asked: one, two; did you mean 'tiny_mmdit.safetensors', which one, two have?)"
    assert error["details"].startswith("unet_name: 'tiny_mmdlt.safetensors' not in ") and error["details"].endswith(f"; {words}")
    assert f"'tiny_mmdlt.safetensors' for UNETLoader.unet_name is not here, and {words}" in master.server.log()


def test_a_class_that_nobody_has_is_refused_and_the_answer_says_that_no_worker_has_it_either(master: Master) -> None:
    prompt = pictures("class of nobody", items=3, seed=33)
    prompt["strange"] = node("RuleForeing", images=out("work"))
    prompt["9"]["inputs"]["images"] = out("strange")
    status, answer = master.server.post("/prompt", {"prompt": prompt})
    assert status == 400 and "RuleForeing" in answer["error"]["message"]
    words = "no worker has it either (asked: one, two; did you mean 'RuleForeign', which one, two have?)"
    assert answer["error"]["details"].endswith(words)


def test_a_class_that_only_workers_have_is_accepted_and_runs_there(master: Master) -> None:
    prompt = pictures("foreign class", items=3, seed=33)
    prompt["strange"] = node("RuleForeign", images=out("work"))
    prompt["9"]["inputs"]["images"] = out("strange")
    master.server.execute(prompt)
    assert master.recorded("foreign class") == [33, 34, 35]
    behind = {**prompt, "after": node("RuleForeign", images=out("9")), "show": node("RuleRecord", images=out("after"), label="x")}
    status, answer = master.server.post("/prompt", {"prompt": behind})
    assert status == 400 and "RuleForeign" in str(answer)


def test_what_cannot_be_planned_fails_the_node_with_the_reason(master: Master) -> None:
    prompt = pictures("unplanned", items=4)
    prompt["image"]["inputs"]["seed"] = 3
    entry = master.server.wait(master.server.queue(prompt))
    kind, facts = entry["status"]["messages"][-1]
    assert kind == "execution_error" and facts["node_id"] == "9"
    assert "DistributedSeed" in facts["exception_message"]


def test_a_collector_that_another_node_made_passes_through(master: Master) -> None:
    prompt = {
        "image": node("RuleImage", seed=3, width=16, height=16, batch_size=1, channels=3),
        "expand": node("ProbeCollectorExpand", images=out("image")),
        "show": node("RuleRecord", images=out("expand"), label="expanded"),
    }
    before = list(master.jobs())
    master.server.execute(prompt)
    assert master.recorded("expanded") == [3]
    assert list(master.jobs()) == before
