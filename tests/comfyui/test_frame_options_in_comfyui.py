"""``--frames`` with ComfyUI's own nodes: what its 8-bit sinks write is byte for byte the same, and what takes floats gets them all."""
from __future__ import annotations

import subprocess
import sys

import pytest

from distributed_comfy.messages import Prompt, TensorRef
from tests.cluster_rig import JobReport, Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.tiny_prompts import distributed
from tests.prompts import node, out

ITEMS = 3
OVERSHOOT = {"big": node("ImageScale", image=out("8"), upscale_method="bicubic", width=96, height=96, crop="disabled")}
"""Between decoder and collector: values below 0 and above 1."""


def job(**behind: Prompt) -> Prompt:
    """The tiny model's pictures, enlarged with overshoot and collected; these nodes take them."""
    prompt = distributed(OVERSHOOT, "big")
    return {**{node_id: one for node_id, one in prompt.items() if node_id != "10"}, **behind}


def save(source: str = "9", class_type: str = "SaveImage", prefix: str = "same", **inputs: object) -> Prompt:
    return node(class_type, images=out(source), filename_prefix=prefix, **inputs)


def contents(report: JobReport) -> list[bytes]:
    return [path.read_bytes() for path in report.done.paths]


def encoded(report: JobReport) -> set[bool]:
    """Whether the collector's images came encoded."""
    captures = [capture for result in report.done.results.values() for capture in result.captures if capture.node_id == "9"]
    return {capture.value.stored_bytes is not None for capture in captures if isinstance(capture.value, TensorRef)}


EIGHT_BIT = {
    "SaveImage": job(save=save()),
    "PreviewImage": job(preview=node("PreviewImage", images=out("9"))),
    "saved by the master": job(),
    "SaveAnimatedPNG": job(save=save(class_type="SaveAnimatedPNG", fps=6.0, compress_level=4)),
    "SaveAnimatedWEBP": job(save=save(class_type="SaveAnimatedWEBP", fps=6.0, lossless=True, quality=80, method="default")),
    "several": job(save=save(), preview=node("PreviewImage", images=out("9")), other=save(prefix="other")),
}
FLOATS = {
    "ImageScale, then SaveImage": job(
        scaled=node("ImageScale", image=out("9"), upscale_method="bicubic", width=160, height=160, crop="disabled"), save=save("scaled")
    ),
    "ImageInvert beside SaveImage": job(save=save(), inverted=node("ImageInvert", image=out("9")), other=save("inverted", prefix="other")),
}


@pytest.mark.parametrize("case", EIGHT_BIT)
def test_an_8_bit_sink_writes_the_very_same_files_under_auto(comfyui_rig: Rig, case: str) -> None:
    exact = comfyui_rig.run(EIGHT_BIT[case], items=ITEMS, frames="exact")
    auto = comfyui_rig.run(EIGHT_BIT[case], items=ITEMS, frames="auto")
    assert exact.batch("9").min() < 0 and exact.batch("9").max() > 1, "values outside [0, 1] were among them"
    assert (encoded(exact), encoded(auto)) == ({False}, {True})
    assert contents(exact) and contents(auto) == contents(exact)


@pytest.mark.parametrize("case", FLOATS)
def test_who_takes_floats_gets_them_all_under_auto(comfyui_rig: Rig, case: str) -> None:
    exact = comfyui_rig.run(FLOATS[case], items=ITEMS, frames="exact")
    auto = comfyui_rig.run(FLOATS[case], items=ITEMS, frames="auto")
    assert encoded(auto) == {False}
    assert auto.batch("9").tobytes() == exact.batch("9").tobytes()
    assert contents(auto) == contents(exact)


@pytest.mark.parametrize("frames", ["zstd", "fp16", "lossy"])
def test_the_engines_own_interpreter_encodes_what_the_master_reads(comfyui_rig: Rig, comfy: Comfy, frames: str) -> None:
    """Our zstandard is lent to an interpreter of the same version; another may have its own, or sends the images as they are."""
    exact = comfyui_rig.run(FLOATS["ImageScale, then SaveImage"], items=ITEMS)
    other = comfyui_rig.run(FLOATS["ImageScale, then SaveImage"], items=ITEMS, frames=frames)
    assert len(contents(other)) == len(contents(exact))
    asked = subprocess.run([comfy.python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True, check=True)
    if frames != "zstd" or asked.stdout.strip() == str(sys.version_info[:2]):
        assert encoded(other) == {True}
    if frames == "zstd":
        assert other.batch("9").tobytes() == exact.batch("9").tobytes() and contents(other) == contents(exact)
    else:
        assert abs(other.batch("9") - exact.batch("9").clip(0, 1)).max() < 0.5
