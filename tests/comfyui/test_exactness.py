"""Our executions against plain ComfyUI's: the same bits."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy

from tests.comfyui.comfy_process import PROJECT, EngineClient
from tests.comfyui.plain_comfyui import PlainComfyUI
from tests.prompts import node, out


def up_to_the_images(seed: int) -> dict[str, Any]:
    """The shipped example up to its images, batch 2, enlarged so that they overshoot [0, 1]."""
    prompt = json.loads((PROJECT / "examples" / "txt2img_tiny.json").read_text())
    for beyond in ("6", "9", "10"):
        del prompt[beyond]
    prompt["5"]["inputs"] |= {"width": 64, "height": 64}
    prompt["7"]["inputs"] |= {"seed": seed, "steps": 2}
    prompt["big"] = node("ImageScale", image=out("8"), upscale_method="bicubic", width=96, height=96, crop="disabled")
    return prompt


def test_eight_seeds_are_bit_identical_to_eight_plain_executions(engine: EngineClient, plain: PlainComfyUI) -> None:
    lowest, highest = 0.0, 1.0
    for seed in range(100, 108):
        prompt = up_to_the_images(seed)
        expected = plain.images(prompt, "big")
        answer = engine.run({**prompt, "9": node("DistributedSink", images=out("big"))}, "9")
        ours = answer["arrays"]["9", "images", 0]
        assert ours.dtype == expected.dtype == numpy.float32 and ours.shape == expected.shape == (2, 96, 96, 3)
        assert ours.tobytes() == expected.tobytes()
        lowest, highest = min(lowest, float(ours.min())), max(highest, float(ours.max()))
    assert lowest < 0 and highest > 1, "values outside [0, 1] were among them"


def test_two_equal_output_nodes_write_once_as_in_plain_comfyui(engine: EngineClient, plain: PlainComfyUI) -> None:
    save = node("SaveImage", images=out("noise"), filename_prefix="twin")
    prompt = {"noise": node("TinyNoise", size=16, batch_size=1, seed=9), "a": save, "b": save}
    for name in ("twin_00001_.png", "twin_00001_.png"):
        answer = engine.run(prompt, "a", "b")
        assert [file[2] for file in answer["files"]] == [name]
    # Newer versions leave the second one out of the history unless a browser is connected, as which the engine poses.
    assert answer["outputs"].items() >= plain.execute(prompt)["outputs"].items()


def test_saved_files_are_byte_identical_to_plain_ones(engine: EngineClient, plain: PlainComfyUI) -> None:
    prompt = {**up_to_the_images(5), "save": node("SaveImage", images=out("big"), filename_prefix="same")}
    entry = plain.execute(prompt)
    answer = engine.run(prompt, "save")
    theirs = [(plain.output / image["filename"]).read_bytes() for image in entry["outputs"]["save"]["images"]]
    assert [Path(path).read_bytes() for *_, path in answer["files"]] == theirs
    assert answer["outputs"] == entry["outputs"]
