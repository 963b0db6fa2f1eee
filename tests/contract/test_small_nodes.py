"""The nodes beside seed and collector, on both engines with real workers: values, model names, dividers, the empty image, old prompts."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from distributed_comfy.errors import NoCapableWorker
from distributed_comfy.messages import Prompt
from tests.cluster_rig import Rig, seeds_of
from tests.prompts import node, out, without

IMAGE = {"width": 16, "height": 8, "batch_size": 1, "channels": 3}
HIDDEN = {
    "multi_job_id": "exec_1_2", "is_worker": True, "master_url": "http://10.0.0.1:8188", "enabled_worker_ids": '["1", "2"]',
    "worker_batch_size": 4, "worker_id": "worker_1", "delegate_only": False,
}  # fmt: skip
"""What ComfyUI-Distributed writes into a collector while it runs."""


def job(**image: Any) -> Prompt:
    """seed -> images -> collector -> a record of what was collected."""
    return {
        "seed": node("DistributedSeed", seed=100),
        "image": node("RuleImage", **{**IMAGE, "seed": out("seed"), **image}),
        "collect": node("DistributedCollector", images=out("image"), load_balance=False),
        "record": node("RuleRecord", images=out("collect"), label="last"),
    }


def value(default: Any, kind: str = "STRING", **own: Any) -> dict[str, Any]:
    """A DistributedValue; ``_1="b"`` is item 1's."""
    values = {"_type": kind, **{key[1:]: one for key, one in own.items()}}
    return node("DistributedValue", default_value=default, worker_values=json.dumps(values))


def recorded_seeds(values: dict[str, Any]) -> list[int]:
    """The seeds of the images that a RuleRecord was given."""
    return seeds_of(numpy.array(values["images"], numpy.float32).reshape(-1, 8, 16, 3))


# -- values and model names ---------------------------------------------------------------------------------------------
def test_each_item_has_its_own_value_and_the_last_stage_item_zeros(rig: Rig) -> None:
    prompt = {**without(job(), "seed"), "v": value("5", "INT", _1="77", _3=2**60 + 1)}
    prompt["image"]["inputs"]["seed"] = prompt["record"]["inputs"]["number"] = out("v")
    report = rig.run(prompt, items=4)
    assert seeds_of(report.batch("collect")) == [5, 77, 5, 2**60 + 1]
    assert recorded_seeds(report.record("last")) == [5, 77, 5, 2**60 + 1]
    assert report.record("last")["number"] == 5


def test_a_value_is_a_choice_of_a_list_and_a_number_too(rig: Rig) -> None:
    prompt = job()
    prompt["method"] = value("nearest-exact", "COMBO", _1="area")
    prompt["width"] = value("16", "INT", _1="16.0")
    prompt["scale"] = node("ImageScale", image=out("image"), upscale_method=out("method"), width=out("width"), height=8, crop="disabled")
    prompt["collect"]["inputs"]["images"] = out("scale")
    report = rig.run(prompt, items=2)
    assert report.start is not None and report.start.record.requirement is not None
    assert {choice[2] for choice in report.start.record.requirement.choices if choice[1] == "upscale_method"} == {"nearest-exact", "area"}
    assert report.batch("collect").shape == (2, 8, 16, 3)


def test_what_one_item_needs_is_asked_of_every_worker_before_anything_is_queued(rig: Rig) -> None:
    prompt = job()
    prompt["method"] = value("area", "COMBO", _1="best")
    prompt["name"] = node("DistributedModelName", text=out("method"))
    prompt["scale"] = node("ImageScale", image=out("image"), upscale_method=out("name"), width=16, height=8, crop="disabled")
    prompt["collect"]["inputs"]["images"] = out("scale")
    with pytest.raises(NoCapableWorker, match=r"one lacks value 'best' for ImageScale.upscale_method"):
        rig.run(prompt, items=2)
    assert rig.run(prompt, items=1).batch("collect").shape == (1, 8, 16, 3), "only item 1 needs it"


def test_a_model_name_is_handed_on_and_shown_once(rig: Rig) -> None:
    prompt = job()
    prompt["name"] = node("DistributedModelName", text="area")
    prompt["scale"] = node("ImageScale", image=out("image"), upscale_method=out("name"), width=16, height=8, crop="disabled")
    prompt["collect"]["inputs"]["images"] = out("scale")
    report = rig.run(prompt, items=2)
    assert report.batch("collect").shape == (2, 8, 16, 3)
    shown = {index: result.outputs.get("name") for index, result in report.done.results.items()}
    assert shown == {0: {"text": ["area"]}, 1: None, 2: None}


def test_a_name_that_is_made_while_the_prompt_runs_goes_through_the_node(rig: Rig) -> None:
    prompt = job()
    prompt["split"] = node("RuleSplit", seed=out("seed"))
    prompt["name"] = node("DistributedModelName", text=out("split", 6))
    prompt["model"] = node("RuleModel", name=out("name"))
    prompt["record"]["inputs"] |= {"model": out("model"), "text": out("name")}
    report = rig.run(prompt, items=2)
    assert report.record("last")["model"] == {"seed": "seed 100 \u2713"} and report.record("last")["text"] == "seed 100 \u2713"


def test_items_may_load_different_files(rig: Rig, tmp_path: Path) -> None:
    prompt, paths = job(), [tmp_path / "a.png", tmp_path / "b.png"]
    for red, path in zip((10, 200), paths, strict=True):
        Image.new("RGB", (16, 8), (red, 0, 0)).save(path)
    prompt["path"] = value(str(paths[0]), _1=str(paths[1]))
    prompt["load"] = node("LoadImage", image=out("path"))
    prompt["collect"]["inputs"]["images"] = out("load")
    report = rig.run(prompt, items=3)
    assert [round(float(image[0, 0, 0]) * 255) for image in report.batch("collect")] == [10, 200, 10]


# -- dividers and the empty image ---------------------------------------------------------------------------------------
def test_a_divider_cuts_the_collected_batch_into_parts(rig: Rig) -> None:
    prompt = job()
    prompt["divide"] = node("ImageBatchDivider", images=out("collect"), divide_by=3)
    for slot in (0, 1, 2, 3):
        prompt[f"part{slot}"] = node("RuleRecord", images=out("divide", slot), label=f"part{slot}")
    report = rig.run(without(prompt, "record"), items=5)
    found = [report.record(f"part{slot}")["images"] for slot in (0, 1, 2)]
    assert [recorded_seeds({"images": images}) for images in found] == [[100, 101], [102, 103], [104]]
    assert report.record("part3")["images"] == [], "an output that is not used is an empty batch"


def test_images_that_only_a_divider_takes_are_saved_by_the_master(rig: Rig) -> None:
    prompt = without(job(), "record")
    prompt["divide"] = node("ImageBatchDivider", images=out("collect"), divide_by=2)
    report = rig.run(prompt, items=2)
    assert [image.path.name for image in report.done.images] == ["ComfyUI_00001_.png", "ComfyUI_00002_.png"]
    prompt["save"] = node("SaveImage", images=out("divide", 1), filename_prefix="second")
    report = rig.run(prompt, items=3)
    assert [path.name for path in report.done.paths] == ["second_00001_.png"]


def test_an_audio_divider_cuts_the_collected_track_along_time(rig: Rig) -> None:
    prompt = job(seed=3)
    prompt["seed"] = node("DistributedSeed", seed=1)
    prompt["split"] = node("RuleSplit", seed=out("seed"))
    prompt["collect"]["inputs"]["audio"] = out("split", 3)
    prompt["divide"] = node("AudioBatchDivider", audio=out("collect", 1), divide_by=4)
    for slot in (0, 3, 9):
        prompt[f"part{slot}"] = node("RuleRecord", audio=out("divide", slot), label=f"part{slot}")
    report = rig.run(prompt, items=2)
    waves = [report.record(f"part{slot}")["audio"]["waveform"] for slot in (0, 3, 9)]
    assert waves == [[[[1.0, 1.0]] * 2], [[[2.0]] * 2], [[[]] * 2]], "six samples in four parts: two, two, one, one"
    assert {report.record(f"part{slot}")["audio"]["sample_rate"] for slot in (0, 3, 9)} == {44100}


def test_the_empty_image_adds_nothing(rig: Rig) -> None:
    prompt = job()
    prompt["none"] = node("DistributedEmptyImage", height=8, width=16, channels=3)
    prompt["both"] = node("ImageBatch", image1=out("none"), image2=out("collect"))
    prompt["record"]["inputs"]["images"] = out("both")
    prompt["size"] = node("RuleRecord", images=out("none"), label="none")
    report = rig.run(prompt, items=2)
    assert recorded_seeds(report.record("last")) == [100, 101]
    assert report.record("none")["images"] == []


# -- prompts of ComfyUI-Distributed -------------------------------------------------------------------------------------
def test_a_prompt_with_all_hidden_inputs_runs_as_if_they_were_not_there(rig: Rig) -> None:
    prompt = job()
    prompt["seed"]["inputs"] |= {"is_worker": True, "worker_id": "worker_3", "enabled_worker_ids": '["1"]'}
    prompt["v"] = value("16", "INT", _2="32")
    prompt["v"]["inputs"] |= {"is_worker": True, "worker_id": "worker_1", "_dv_default": "16", "_dv_worker_1": ""}
    prompt["image"]["inputs"]["width"] = out("v")
    prompt["collect"]["inputs"] |= {**HIDDEN, "pass_through": False}
    assert seeds_of(rig.run(prompt, items=2).batch("collect")) == [100, 101]


def test_a_collector_that_passes_through_runs_with_its_hidden_inputs(rig: Rig) -> None:
    prompt = job()
    prompt["collect"]["inputs"] |= {**HIDDEN, "pass_through": True}
    report = rig.run(prompt)
    assert recorded_seeds(report.record("last")) == [100] and len(report.done.results) == 1


@pytest.mark.parametrize("pass_through", [False, True])
def test_a_collector_of_an_old_prompt_has_images_and_nothing_else(rig: Rig, pass_through: bool) -> None:
    prompt = job()
    prompt["collect"]["inputs"] = {"images": out("image")} | ({"pass_through": True} if pass_through else {})
    assert recorded_seeds(rig.run(prompt, **({} if pass_through else {"items": 2})).record("last")) == [100, 101][: 2 - pass_through]


def test_load_balance_makes_one_item_of_it_on_whichever_worker_is_free(rig: Rig) -> None:
    prompt = job()
    prompt["collect"]["inputs"]["load_balance"] = True
    report = rig.run(prompt)
    assert seeds_of(report.batch("collect")) == [100] and len(report.done.results) == 2
    busy = job()
    busy["slow"] = node("RuleSlow", images=out("image"), milliseconds=2000)
    busy["collect"]["inputs"] |= {"images": out("slow"), "load_balance": True}
    rig.wait_idle()
    first = rig.begin(without(busy, "record"))
    job_id = first.queued()
    first.until(lambda: rig.executions(job_id))
    second = rig.run(without(prompt, "record"))
    (done,) = second.done.results.values()
    (other,) = first.wait().done.results.values()
    assert {done.worker, other.worker} == {"one", "two"}, "the other worker was busy"
