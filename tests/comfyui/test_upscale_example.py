"""The shipped upscale with the tiny model, smaller: a real ComfyUI refines its tiles, and nobody sees who made which."""
from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

from distributed_comfy.messages import Prompt
from tests.cluster_rig import JobReport, Rig
from tests.comfyui.comfy_process import PROJECT
from tests.command_line import pixels
from tests.prompts import node, out
from tests.tile_jobs import put_apart, put_together

TILES = 9


def example() -> Prompt:
    """A third as wide, in as many tiles."""
    prompt: Prompt = json.loads((PROJECT / "examples" / "upscale_tiny.json").read_text())
    prompt["5"]["inputs"] |= {"width": 128, "height": 128}
    prompt["8"]["inputs"] |= {"width": 288, "height": 288}
    prompt["9"]["inputs"] |= {"tile_width": 96, "tile_height": 96, "steps": 2}
    return prompt


def files(report: JobReport) -> dict[str, bytes]:
    return {file.path.name: file.path.read_bytes() for file in report.done.files}


def workers(report: JobReport) -> set[str]:
    return {result.worker for result in report.done.results.values()}


def test_one_worker_and_two_make_the_same_files_of_an_upscale(comfyui_rig: Rig) -> None:
    by_two = comfyui_rig.run(example())
    comfyui_rig.cluster.jobs.drain("two")
    try:
        by_one = comfyui_rig.run(example())
    finally:
        comfyui_rig.cluster.jobs.drain("two", drained=False)
    assert (workers(by_two), workers(by_one)) == ({"one", "two"}, {"one"})
    assert len(by_one.done.results) == len(by_two.done.results) == TILES + 2, "the image, its tiles, the last stage"
    assert set(files(by_one)) == {"before_00001_.png", "after_00001_.png"} and files(by_one) == files(by_two)
    before, after = (pixels(file.path) for file in sorted(by_one.done.files, key=lambda file: file.path.name, reverse=True))
    assert before.shape == after.shape == (288, 288, 3) and (before != after).mean() > 0.9, "every tile was refined"


# -- several tiles in one item, and parts of a clip ---------------------------------------------------------------------
def small_tiles(**inputs: Any) -> Prompt:
    """Sixteen tiles of 64 with a ControlNet, whose hint each tile sees in part."""
    prompt = example()
    prompt["8"]["inputs"] |= {"width": 256, "height": 256}
    prompt["net"] = node("ControlNetLoader", control_net_name="tiny_control.safetensors")
    prompt["control"] = node(
        "ControlNetApplyAdvanced", positive=out("3"), negative=out("4"), control_net=out("net"), image=out("8"), strength=1.0,
        start_percent=0.0, end_percent=1.0, vae=out("2"),
    )  # fmt: skip
    links = {"positive": out("control"), "negative": out("control", 1)}
    prompt["9"]["inputs"] |= {"tile_width": 64, "tile_height": 64, "padding": 16, "tile_seeds": "offset", **links, **inputs}
    return prompt


def assert_same_tiles(tiles: dict[int, NDArray[Any]], others: dict[int, NDArray[Any]]) -> None:
    assert set(tiles) == set(others) and len(tiles) > 1
    assert all(tiles[number].tobytes() == others[number].tobytes() for number in tiles)


@pytest.mark.parametrize("mode", ["chess", "linear"])
def test_tiles_that_share_an_item_have_the_bytes_that_each_has_alone(
    comfyui_rig: Rig, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    seams = {"seam_fix": "band_pass", "seam_fix_width": 32, "seam_fix_denoise": 0.3} if mode == "chess" else {}
    put_apart(monkeypatch)
    alone = comfyui_rig.run(small_tiles(mode=mode, **seams))
    put_together(monkeypatch)
    together = comfyui_rig.run(small_tiles(mode=mode, **seams))
    assert max(len(numbers) for numbers in together.planned) == {"linear": 2, "chess": 6}[mode]
    assert_same_tiles(together.tiles("9"), alone.tiles("9"))
    assert files(together) == files(alone)


ROUNDING = 1e-5
"""Kernels add up in another order for another size of a batch: 6e-7 was seen, and nothing where the sizes were two and three frames."""


@pytest.mark.parametrize("groups", [2, 3])
def test_frames_in_groups_become_what_they_become_in_the_whole_clip_but_for_rounding(
    comfyui_rig: Rig, monkeypatch: pytest.MonkeyPatch, groups: int
) -> None:
    prompt = example()
    prompt["5"]["inputs"]["batch_size"] = 3
    prompt["8"]["inputs"] |= {"width": 160, "height": 96}
    whole = comfyui_rig.run(prompt)
    frame = max(tile.shape[1] * tile.shape[2] for tile in whole.tiles("9").values()) * 3 * 4
    settings = comfyui_rig.cluster.settings.model_copy(update={"tile_item_bytes": -(-3 // groups) * frame})
    monkeypatch.setattr(comfyui_rig, "cluster", replace(comfyui_rig.cluster, settings=settings))
    split = comfyui_rig.run(prompt)
    steps, tiles, expected = len(whole.planned), split.tiles("9"), whole.tiles("9")
    assert len(tiles) == groups * steps
    for step in range(steps):
        joined = numpy.concatenate([tiles[group * steps + step] for group in range(groups)])
        numpy.testing.assert_allclose(joined, expected[step], rtol=0, atol=ROUNDING)
        assert abs(joined[0] - joined[1]).mean() > 0.05, "each frame has its own noise"
