"""A whole cluster against plain ComfyUI: the same bits, whoever made them."""
from __future__ import annotations

from typing import Any

import numpy
import pytest
from PIL import Image

from tests.cluster_rig import Rig
from tests.comfyui.plain_comfyui import PlainComfyUI
from tests.comfyui.tiny_prompts import distributed, plain_item
from tests.prompts import node, out

FIRST, ITEMS = 100, 8

VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "outside 0 to 1": {
        "sharp": node("ImageSharpen", image=out("8"), sharpen_radius=3, sigma=2.0, alpha=5.0),
        "end": node("ImageScale", image=out("sharp"), upscale_method="bicubic", width=96, height=96, crop="disabled"),
    },
    "odd sizes": {"end": node("ImageScale", image=out("8"), upscale_method="bilinear", width=61, height=97, crop="center")},
    "alpha": {
        "mask": node("ImageToMask", image=out("8"), channel="green"),
        "end": node("JoinImageWithAlpha", image=out("8"), alpha=out("mask")),
    },
    "inverted": {"end": node("ImageInvert", image=out("8"))},
}
"""What follows the decoded images; the node ``end`` is collected."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_eight_items_over_two_workers_are_bit_identical_to_eight_plain_executions(
    comfyui_rig: Rig, plain: PlainComfyUI, variant: str
) -> None:
    tail = VARIANTS[variant]
    end = "end" if tail else "8"
    report = comfyui_rig.run(distributed(tail, end, seed=FIRST), items=ITEMS)
    assert {result.worker for index, result in report.done.results.items() if index < ITEMS} == {"one", "two"}
    ours = report.batches("9")
    assert len(ours) == ITEMS
    for index, images in enumerate(ours):
        expected = plain.images(plain_item(tail, end, seed=FIRST + index), end)
        assert images.dtype == expected.dtype == numpy.float32 and images.shape == expected.shape
        assert images.shape[0] == 2
        assert images.tobytes() == expected.tobytes(), f"item {index}"
    lowest, highest = min(float(images.min()) for images in ours), max(float(images.max()) for images in ours)
    if variant == "outside 0 to 1":
        assert lowest < 0 or highest > 1
    assert ours[0].shape[3] == (4 if variant == "alpha" else 3)


def test_the_last_stage_sees_what_plain_comfyui_sees_and_saves_the_same_pixels(comfyui_rig: Rig, plain: PlainComfyUI) -> None:
    report = comfyui_rig.run(distributed({}, "8", seed=FIRST), items=ITEMS)
    files = sorted(file.path for file in report.done.files)
    assert [path.name for path in files] == [f"tiny_{number:05}_.png" for number in range(1, 2 * ITEMS + 1)]
    for index in range(ITEMS):
        entry = plain.execute({**plain_item({}, "8", seed=FIRST + index), "10": node("SaveImage", images=out("8"), filename_prefix="p")})
        for batch, image in enumerate(entry["outputs"]["10"]["images"]):
            with Image.open(plain.output / image["filename"]) as theirs, Image.open(files[2 * index + batch]) as ours:
                assert numpy.array_equal(numpy.array(theirs), numpy.array(ours))


def test_a_prompt_without_distributed_nodes_gives_the_files_of_plain_comfyui_byte_for_byte(comfyui_rig: Rig, plain: PlainComfyUI) -> None:
    prompt = {**plain_item({}, "8", seed=5), "10": node("SaveImage", images=out("8"), filename_prefix="whole")}
    entry = plain.execute(prompt)
    report = comfyui_rig.run(prompt)
    theirs = [(plain.output / image["filename"]).read_bytes() for image in entry["outputs"]["10"]["images"]]
    assert [file.path.read_bytes() for file in report.done.files] == theirs
    assert report.done.results[0].outputs == entry["outputs"]
