"""The shipped upscale with the tiny model, smaller: a real ComfyUI refines its tiles, and nobody sees who made which."""
from __future__ import annotations

import json

from distributed_comfy.messages import Prompt
from tests.cluster_rig import JobReport, Rig
from tests.comfyui.comfy_process import PROJECT
from tests.command_line import pixels

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
