"""Tiles of clips and of odd sizes through VAEs that count frames in fours and pixels in sixteens, as planning writes them."""
from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy
import pytest

from distributed_comfy.messages import Prompt, apply_patches
from distributed_comfy.planning.plan import PlanOptions, plan_job
from distributed_comfy.transport.values import load_value, store_value
from distributed_comfy.workflow.tile_items import Canvas, TileItem, TileRow, tile_specs
from tests.comfyui.test_engine_process import Worker, example, finished, worker  # noqa: F401
from tests.comfyui.test_planned_tiles import RUNS_TILES, sampling
from tests.prompts import node, out, parsed

pytestmark = RUNS_TILES


def upscaled(factor: int, *, packing: bool, tiled_decode: bool) -> Prompt:
    """A clip through an upscale whose sampler keeps the latents, since no tiny model takes those of a video."""
    prompt = example(5)
    links = prompt["7"]["inputs"]
    return {
        **prompt,
        "vae": node("TileVideoVae", factor=factor, packing=packing),
        "clip": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "u": node(
            "UltimateSDUpscaleDistributed", upscaled_image=out("clip"), vae=out("vae"), tiled_decode=tiled_decode,
            **{**sampling(links["model"], links["positive"], links["negative"]), "denoise": 0.0},
        ),
        "save": node("SaveImage", images=out("u"), filename_prefix="clip"),
    }  # fmt: skip


def tile_of(
    worker: Worker, clip: Any, factor: int, *, packing: bool = True, tiled_decode: bool = False, first: int = 0, of: int = 0  # noqa: F811
) -> Any:
    """The frames of a tile that is all of its canvas, as the engine gives them back."""
    job = plan_job(parsed(upscaled(factor, packing=packing, tiled_decode=tiled_decode)), PlanOptions(), [worker.capability])
    assert job.tiles is not None
    frames, height, width = clip.shape[:3]
    row = TileRow(0, 0, 0, width, height, width, height)
    (spec,) = tile_specs(job.tiles, 2, Canvas(width, height, of or frames), [TileItem(0, (row,), first, frames if of else 0)])
    pixels = store_value(worker.blobs, "clip", clip, job_id="0123456789ab", limit_bytes=2**30)
    prompt = apply_patches(dict(job.prompts[spec.prompt_hash]), spec.patches)
    feed = {job.tiles.pixels: {"value": (pixels,)}}
    result = finished(worker.run(prompt, *spec.targets, kind="tile", feed=feed, index=spec.index))
    return load_value(worker.blobs, result.captures[0].value, as_torch=False)


def noisy(*shape: int) -> Any:
    return numpy.random.default_rng(sum(shape)).random((*shape, 3), dtype=numpy.float32)


@pytest.mark.parametrize("frames", [1, 5, 16, 17, 20])
def test_a_clip_of_any_number_of_frames_comes_back_frame_by_frame(worker: Worker, frames: int) -> None:  # noqa: F811
    clip = noisy(frames, 24, 40)
    numpy.testing.assert_allclose(tile_of(worker, clip, 8), clip, atol=1e-6)


@pytest.mark.parametrize("tiled_decode", [False, True])
@pytest.mark.parametrize("frames", [5, 16, 17, 20])
@pytest.mark.parametrize("factor", [8, 16])
def test_wans_own_vaes_give_back_as_many_frames_and_pixels_as_they_got(
    worker: Worker, frames: int, factor: int, tiled_decode: bool  # noqa: F811
) -> None:
    clip = noisy(frames, 24, 40)
    found = tile_of(worker, clip, factor, packing=False, tiled_decode=tiled_decode)
    assert found.shape == clip.shape and numpy.isfinite(found).all()


@pytest.mark.parametrize("frames", [1, 5, 16])
def test_1080_pixels_come_back_as_they_went_through_latents_of_16(worker: Worker, frames: int) -> None:  # noqa: F811
    for clip in (noisy(frames, 24, 1080), noisy(frames, 1080, 16)):
        numpy.testing.assert_allclose(tile_of(worker, clip, 16), clip, atol=1e-6)


def test_groups_of_one_clip_come_back_in_place(worker: Worker) -> None:  # noqa: F811
    """As `DC_TILE_ITEM_BYTES` divides 81 frames."""
    clip, borders = noisy(81, 8, 16), (0, 16, 32, 48, 64, 81)
    parts = [tile_of(worker, clip[first:end], 8, first=first, of=81) for first, end in pairwise(borders)]
    numpy.testing.assert_allclose(numpy.concatenate(parts), clip, atol=1e-6)
