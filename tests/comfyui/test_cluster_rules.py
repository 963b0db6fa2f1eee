"""Rules of cutting a prompt that only ComfyUI can show: blockers, lazy inputs, expansions; and its own nodes with exact seeds."""
from __future__ import annotations

import numpy
import pytest

from tests.cluster_rig import Rig, seeds_of
from tests.comfyui.plain_comfyui import PlainComfyUI
from tests.comfyui.tiny_prompts import distributed, plain_item
from tests.contract.test_cut_rules import job, recorded_seeds
from tests.prompts import node, out


def test_a_blocked_item_is_done_with_zero_images_and_reported(comfyui_rig: Rig) -> None:
    prompt = job()
    prompt["split"] = node("RuleSplit", seed=out("seed"))
    prompt["block"] = node("ProbeBlock", images=out("image"), block=out("split", 7), message="")  # odd seeds
    prompt["collect"]["inputs"]["images"] = out("block")
    report = comfyui_rig.run(prompt, items=4)
    blocked = {index: result.blocked for index, result in report.done.results.items()}
    assert blocked == {0: (), 1: ("collect",), 2: (), 3: ("collect",), 4: ()}
    assert recorded_seeds(report.record("last")) == [100, 102]


@pytest.mark.parametrize("message", ["", "not today"])
def test_when_every_item_is_blocked_the_last_stage_saves_nothing(comfyui_rig: Rig, message: str) -> None:
    prompt = job()
    prompt["block"] = node("ProbeBlock", images=out("image"), block=True, message=message)
    prompt["collect"]["inputs"]["images"] = out("block")
    report = comfyui_rig.run(prompt, items=2)
    assert [report.done.results[index].blocked for index in (0, 1)] == [("collect",), ("collect",)]
    assert report.done.paths == [] and report.count("RuleRecord") == 0


def test_a_lazily_skipped_item_is_done_with_zero_images(comfyui_rig: Rig) -> None:
    prompt = job(4000)  # a seed of its own: what is in ComfyUI's cache already reaches a lazy input all the same
    prompt["split"] = node("RuleSplit", seed=out("seed"))
    prompt["lazy"] = node("ProbeLazy", images=out("image"), on=out("split", 7))
    prompt["collect"]["inputs"]["images"] = out("lazy")
    report = comfyui_rig.run(prompt, items=3)
    assert [report.done.results[index].blocked for index in range(3)] == [("collect",), (), ("collect",)]
    assert recorded_seeds(report.record("last")) == [4001]
    assert report.count("RuleImage") == 1, "what a lazy node does not ask for does not run"


def test_a_blocked_edge_blocks_what_needs_it_in_the_last_stage(comfyui_rig: Rig) -> None:
    prompt = job()
    prompt["block"] = node("ProbeBlock", images=out("image"), block=True, message="")
    prompt["join"] = node("ImageBatch", image1=out("collect"), image2=out("block"))
    prompt["crossed"] = node("RuleRecord", images=out("join"), label="crossed")
    report = comfyui_rig.run(prompt, items=2)
    assert recorded_seeds(report.record("last")) == [100, 101]
    assert [call for call in report.calls if call.startswith("RuleRecord")] == ["RuleRecord last"]


def test_a_collector_that_another_node_creates_passes_through(comfyui_rig: Rig) -> None:
    prompt = job()
    prompt["grow"] = node("ProbeCollectorExpand", images=out("image"))
    prompt["collect"]["inputs"]["images"] = out("grow")
    report = comfyui_rig.run(prompt, items=3)
    assert seeds_of(report.batch("collect")) == [100, 101, 102]
    assert any("passes its input through" in worker.log() for worker in comfyui_rig.workers.values())


def test_files_of_an_output_node_that_another_node_creates_are_delivered_each_time(comfyui_rig: Rig) -> None:
    prompt = job()
    prompt["grow"] = node("ProbeExpand", images=out("collect"))
    prompt["record"]["inputs"]["images"] = out("grow")
    for _ in range(2):
        names = sorted(file.name for file in comfyui_rig.run(prompt, items=2).done.files)
        assert names == ["expanded_00001_.png", "expanded_00002_.png", "last.json"]


@pytest.mark.parametrize("seed", [2**53 + 1, 2**64 - 2])
def test_comfyuis_sampler_gets_seeds_exactly_up_to_the_last_one(comfyui_rig: Rig, plain: PlainComfyUI, seed: int) -> None:
    report = comfyui_rig.run(distributed(seed=seed), items=2)
    for index, images in enumerate(report.batches("9")):
        assert images.tobytes() == plain.images(plain_item(seed=seed + index), "8").tobytes()


def test_the_samplers_latent_crosses_the_cut_whole(comfyui_rig: Rig) -> None:
    prompt = distributed()
    prompt["before"] = node("RuleRecord", latent=out("7"), label="before")
    prompt["behind"] = node("RuleRecord", images=out("9"), latent=out("7"), label="behind")
    report = comfyui_rig.run(prompt, items=2)
    assert report.start is not None and report.start.record.edges == ("7~0",)
    assert numpy.array(report.record("behind")["latent"]["samples"]).shape == (2, 16, 8, 8)
    assert report.record("behind")["latent"] == report.record("before")["latent"]
