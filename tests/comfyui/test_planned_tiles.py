"""A prompt with an upscale, planned against a real ComfyUI and run in its engine process stage by stage, as a master would feed it."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy
import pytest

from distributed_comfy.messages import ItemResult, Prompt, Value, apply_patches
from distributed_comfy.planning.plan import JobPlan, PlanOptions, plan_job
from distributed_comfy.transport.values import load_value, store_value, value_blobs
from distributed_comfy.workflow.tile_items import Canvas, TileItem, TileRow, tile_specs
from tests.comfyui.test_engine_process import Worker, example, finished, worker  # noqa: F401
from tests.prompts import node, out, parsed

SIDE = 64
RUNS_TILES = pytest.mark.parametrize("worker", ["comfyui"], indirect=True)
"""A ComfyUI of its own: one that is attached runs the other stages, but no tiles."""
ROWS = [TileRow(column, 32 * column, 0, 32, SIDE, 32, SIDE) for column in range(2)]


def sampling(model: list[Any], positive: list[Any], negative: list[Any]) -> dict[str, Any]:
    """Inputs of the upscale that its sampler shares."""
    numbers = {"seed": 3, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 0.6}
    return {"model": model, "positive": positive, "negative": negative, **numbers}


def upscaled() -> Prompt:
    """The example's image, upscaled with a masked prompt, and a picture of both."""
    prompt = example(5)
    links = prompt["7"]["inputs"]
    return {
        **prompt,
        "mask": node("SolidMask", value=0.5, width=SIDE, height=SIDE),
        "grown": node("GrowMask", mask=out("mask"), expand=0, tapered_corners=True),
        "masked": node("ConditioningSetMask", conditioning=links["positive"], mask=out("grown"), strength=1.0, set_cond_area="default"),
        "u": node(
            "UltimateSDUpscaleDistributed", upscaled_image=out("8"), vae=prompt["8"]["inputs"]["vae"],
            **sampling(links["model"], out("masked"), links["negative"]),
        ),
        "both": node("ImageBatch", image1=out("u"), image2=out("8")),
        "save": node("SaveImage", images=out("both"), filename_prefix="both"),
    }  # fmt: skip


def by_hand(row: TileRow) -> Prompt:
    """The same tile of stock nodes."""
    prompt = upscaled()
    links, vae = prompt["7"]["inputs"], prompt["8"]["inputs"]["vae"]
    prompt |= {
        "mask": node("SolidMask", value=0.5, width=row.width, height=row.height),
        # Not cut by a node: what VAEDecode gives lies channel by channel in memory, and convolutions round such pixels otherwise.
        "crop": node("DistributedSource", slots="value"),
        "encode": node("VAEEncode", pixels=out("crop"), vae=vae),
        "sample": node("KSampler", latent_image=out("encode"), **sampling(links["model"], out("masked"), links["negative"])),
        "decode": node("VAEDecode", samples=out("sample"), vae=vae),
        "9": node("DistributedSink", images=out("decode")),
    }
    return {node_id: one for node_id, one in prompt.items() if node_id not in ("u", "both", "save")}


class Master:
    """What a master does by the record of a job."""

    def __init__(self, worker: Worker, job: JobPlan) -> None:  # noqa: F811
        assert job.tiles is not None
        self.worker, self.job, self.tiles = worker, job, job.tiles
        first = job.items[0]
        self.first = finished(worker.run(dict(job.prompts[first.prompt_hash]), *first.targets))
        self.image: Any = load_value(worker.blobs, self.captured(self.tiles.image.node_id), as_torch=False)

    def captured(self, node_id: str) -> Value:
        """A value that item 0 captured."""
        return next(capture.value for capture in self.first.captures if capture.node_id == node_id)

    def stored(self, name: str, image: Any) -> Value:
        """An image in the blob store."""
        return store_value(self.worker.blobs, name, numpy.ascontiguousarray(image), job_id="0123456789ab", limit_bytes=2**30)

    def crop(self, row: TileRow) -> Value:
        """What of the image a tile reads."""
        return self.stored(f"crop{row.step}", self.image[:, row.top : row.top + row.height, row.left : row.left + row.width])

    def tiles_of(self, *rows: TileRow) -> list[Any]:
        """The images of an item with these tiles."""
        kept = {one.source_id: "m" for one in self.tiles.constants}
        (spec,) = tile_specs(self.tiles, 2, Canvas(SIDE, SIDE, 1), [TileItem(0, rows)], kept)
        feed = {one.source_id: {one.place.slot: (self.captured(one.place.node_id),)} for one in self.tiles.constants}
        feed[self.tiles.pixels] = {"value": tuple(self.crop(row) for row in rows)}
        prompt = apply_patches(dict(self.job.prompts[spec.prompt_hash]), spec.patches)
        result = finished(self.worker.run(prompt, *spec.targets, kind="tile", feed=feed, index=spec.index))
        assert [capture.list_index for capture in result.captures] == list(range(len(rows)))
        return [load_value(self.worker.blobs, capture.value, as_torch=False) for capture in result.captures]

    def tile(self, row: TileRow) -> Any:
        """The image of a tile that is an item."""
        return self.tiles_of(row)[0]

    def array(self, result: ItemResult) -> Any:
        """The one captured image."""
        return load_value(self.worker.blobs, result.captures[0].value, as_torch=False)


@pytest.fixture(scope="module")
def master(worker: Worker) -> Master:  # noqa: F811
    return Master(worker, plan_job(parsed(upscaled()), PlanOptions(), [worker.capability]))


@RUNS_TILES
def test_a_tile_makes_what_stock_nodes_make_of_the_same_crop(master: Master) -> None:
    assert [one.source_id for one in master.tiles.constants] == ["grown~0"] and master.job.warnings == ()
    for row in ROWS:
        feed = {"crop": {"value": (master.crop(row),)}}
        expected = master.array(finished(master.worker.run(by_hand(row), "9", kind="tile", feed=feed)))
        numpy.testing.assert_array_equal(master.tile(row), expected)


@RUNS_TILES
def test_tiles_of_one_item_have_the_bytes_that_each_has_alone(master: Master) -> None:
    """One after the other through the same nodes, each with its own part of the mask, and a denoise of its own."""
    rows = [ROWS[1], replace(ROWS[0], denoise=0.3), ROWS[0]]
    together = master.tiles_of(*rows)
    for row, image in zip(rows, together, strict=True):
        numpy.testing.assert_array_equal(image, master.tile(row))
    assert not numpy.array_equal(together[1], together[2])


@RUNS_TILES
def test_a_constant_is_read_by_the_first_tile_and_stays_in_the_cache_for_the_others(master: Master) -> None:
    first = master.tile(ROWS[0])
    master.worker.blobs.unlink(value_blobs(master.captured("grown~0")))
    numpy.testing.assert_array_equal(master.tile(ROWS[0]), first)
    assert not numpy.array_equal(master.tile(ROWS[1]), first)


def test_the_last_stage_takes_the_canvas_and_the_image_before(master: Master) -> None:
    last, canvas = master.job.items[-1], numpy.zeros_like(master.image)
    assert master.job.edges == ("8~0",)
    feed = {"u": {"images": (master.stored("canvas", canvas),)}, "8~0": {"value": (master.stored("before", master.image),)}}
    result = finished(master.worker.run(dict(master.job.prompts[last.prompt_hash]), *last.targets, kind="last", feed=feed, index=1))
    assert [file.name for file in result.files] == [f"both_0000{number}_.png" for number in range(1, 2 * len(canvas) + 1)]
