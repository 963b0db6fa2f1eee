"""The built-in engine's way from image to image: SeededModel, VAEEncode, KSampler, VAEDecode, and a tile of an upscale over them."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_comfy.errors import ItemInterrupted, UpscaleInputWrong, UpscaleUndistributed, ValidationRefused
from distributed_comfy.messages import LiteralValue, Prompt
from distributed_comfy.transport.values import store_value
from distributed_comfy.workflow.region import Region, TileTask, tasks_text
from tests.prompts import node, out
from tests.unit.builtin_engine import Bench, RecordingSink

REGION = Region(64, 64, left=0, top=0, width=40, height=32, process_width=40, process_height=32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads gain nothing on small pictures, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def image_to_image(decoder: str = "VAEDecode", **changes: Any) -> Prompt:
    """A picture of 40 x 32, once round; ``9`` takes it."""
    tiling = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8} if decoder == "VAEDecodeTiled" else {}
    sampler = {
        "seed": 1, "steps": 3, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5, "model": out("m"),
        "positive": out("m", 1), "negative": out("m", 1), "latent_image": out("2"),
    }  # fmt: skip
    return {
        "m": node("SeededModel", edges=0.8, strokes=0.6),
        "1": node("SeededGenerator", seed=1, steps=3, width=40, height=32, batch_size=2, style="auto"),
        "2": node("VAEEncode", pixels=out("1"), vae=out("m", 2)),
        "3": node("KSampler", **{**sampler, **changes}),
        "4": node(decoder, samples=out("3"), vae=out("m", 2), **tiling),
        "9": node("DistributedSink", images=out("4")),
        "8": node("DistributedSink", images=out("1")),
    }


def images(bench: Bench, prompt: Prompt, **facts: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Before and after."""
    outcome = bench.run(prompt, "8", "9", **facts)
    before, after = (capture.value for capture in sorted(outcome.captures, key=lambda capture: capture.node_id))
    return before, after


def test_a_picture_comes_out_refined_in_the_same_size(bench: Bench) -> None:
    before, after = images(bench, image_to_image())
    assert before.shape == after.shape == (2, 32, 40, 3) and after.dtype == torch.float32
    assert (before - after).abs().mean() > 0.001


@pytest.mark.parametrize("decoder", ["VAEDecode", "VAEDecodeTiled"])
def test_at_denoise_0_every_bit_is_kept(bench: Bench, decoder: str) -> None:
    before, after = images(bench, image_to_image(decoder, denoise=0.0))
    assert torch.equal(before, after)


def test_the_same_inputs_give_the_same_bits_in_another_engine(bench: Bench, tmp_path: Path) -> None:
    assert torch.equal(images(bench, image_to_image())[1], images(Bench(tmp_path / "other"), image_to_image())[1])


@pytest.mark.parametrize("change", [{"seed": 2}, {"denoise": 0.6}])
def test_seed_and_denoise_make_a_difference(bench: Bench, change: dict[str, Any]) -> None:
    assert not torch.equal(images(bench, image_to_image())[1], images(bench, image_to_image(**change))[1])


def test_an_uneven_picture_loses_the_same_edge_as_in_a_real_vae(bench: Bench) -> None:
    prompt = image_to_image(denoise=0.0)
    prompt["1"]["inputs"] |= {"width": 45, "height": 34}
    before, after = images(bench, prompt)
    assert torch.equal(after, before[:, 1:33, 2:42])


def test_sampling_reports_each_step_of_each_picture_and_shows_some(bench: Bench) -> None:
    sink = RecordingSink()
    bench.run(image_to_image(), "9", sink=sink)
    assert [step for step in sink.steps if step[0] == "3"] == [("3", value, 6) for value in range(1, 7)]
    assert sink.previews


def test_sampling_stops_between_two_steps(bench: Bench) -> None:
    def stop(value: int) -> None:
        if sink.steps[-1] == ("3", 2, 6):
            bench.engine.interrupt("c1")

    sink = RecordingSink(stop)
    with pytest.raises(ItemInterrupted):
        bench.run(image_to_image(), "9", sink=sink)
    assert sink.steps[-1] == ("3", 2, 6)


def test_a_model_of_another_kind_is_refused_by_its_type(bench: Bench) -> None:
    with pytest.raises(ValidationRefused, match="Return type mismatch"):
        bench.run(image_to_image(model=out("m", 2)), "9")


def test_only_this_engine_has_the_class_that_makes_its_models(bench: Bench) -> None:
    capability = bench.engine.describe()
    assert {"SeededModel", "VAEEncode", "KSampler", "VAEDecode", "VAEDecodeTiled"} <= set(capability.node_classes)
    gives_models = {name for name, kinds in capability.output_types.items() if {"MODEL", "VAE", "CONDITIONING"} & set(kinds)}
    assert gives_models == {"SeededModel", "DistributedTileInputs", "DistributedTileModel", "DistributedTileConditioning"}
    assert capability.seed_limits["KSampler"]["seed"] == str(2**64 - 1)


# -- tiles of an upscale, as planning writes them -----------------------------------------------------------------------
def tiles(*tasks: TileTask, denoise: float = 0.5) -> Prompt:
    region = out("u~filled", 1)
    return {
        "m": node("SeededModel", edges=0.8, strokes=0.6),
        "u~pixels": node("DistributedSource", slots="value"),
        "u~regions": node("DistributedTileRegions", tiles=tasks_text(tasks), seed=1, denoise=denoise),
        "u~given": node("DistributedTileInputs", model=out("m"), positive=out("m", 1), negative=out("m", 1), vae=out("m", 2)),
        "u~filled": node("DistributedTilePixels", crop=out("u~pixels"), region=out("u~regions"), vae=out("u~given", 3)),
        "u~model": node("DistributedTileModel", model=out("u~given"), region=region),
        "u~positive": node("DistributedTileConditioning", conditioning=out("u~given", 1), region=region),
        "u~negative": node("DistributedTileConditioning", conditioning=out("u~given", 2), region=region),
        "u~encode": node("VAEEncode", pixels=out("u~filled"), vae=out("u~given", 3)),
        "u~latent": node("DistributedTileLatent", latent=out("u~encode"), region=region),
        "u~sample": node(
            "KSampler", model=out("u~model"), seed=out("u~regions", 1), steps=2, cfg=8.0, sampler_name="euler", scheduler="normal",
            denoise=out("u~regions", 2), positive=out("u~positive"), negative=out("u~negative"), latent_image=out("u~latent"),
        ),
        "u~decode": node("VAEDecode", samples=out("u~sample"), vae=out("u~given", 3)),
        "u~cut": node("DistributedTileImage", image=out("u~decode"), crop=out("u~pixels"), pixels=out("u~filled")),
        "u": node("DistributedSink", images=out("u~cut")),
    }  # fmt: skip


def fed(bench: Bench, *crops: torch.Tensor) -> dict[str, Any]:
    values = [store_value(bench.blobs, f"tile{at}", pixels, job_id="j", limit_bytes=2**30) for at, pixels in enumerate(crops)]
    return {"feed": {"u~pixels": {"value": tuple(values)}}}


def drawn(bench: Bench, prompt: Prompt, *crops: torch.Tensor) -> list[torch.Tensor]:
    captures = bench.run(prompt, "u", **fed(bench, *crops)).captures
    assert [capture.list_index for capture in captures] == list(range(len(crops)))
    return [capture.value for capture in captures]


def noisy(seed: int, frames: int = 1, width: int = 40) -> torch.Tensor:
    return torch.rand((frames, 32, width, 3), generator=torch.Generator().manual_seed(seed))


def test_a_tile_of_an_upscale_runs_as_a_prompt_and_keeps_its_bits_at_denoise_0(bench: Bench) -> None:
    pixels = noisy(1, frames=3)
    (image,) = drawn(bench, tiles(TileTask(REGION), denoise=0.0), pixels)
    assert torch.equal(image, pixels)


def test_the_second_tile_makes_no_model_anew(bench: Bench) -> None:
    pixels = noisy(1)
    drawn(bench, tiles(TileTask(REGION)), pixels)
    assert {"SeededModel", "DistributedTileInputs"} <= set(bench.counting.calls)
    drawn(bench, tiles(TileTask(replace(REGION, left=24))), pixels)
    assert sorted(bench.counting.calls) == sorted([
        "DistributedSource", "DistributedTileRegions", "DistributedTilePixels", "DistributedTileModel", "DistributedTileConditioning",
        "DistributedTileConditioning", "DistributedTileLatent", "VAEEncode", "KSampler", "VAEDecode", "DistributedTileImage",
        "DistributedSink",
    ])  # fmt: skip


def test_tiles_of_one_item_have_the_bytes_that_each_has_alone(bench: Bench) -> None:
    """Also where their sizes, seeds and denoises differ."""
    tasks = [TileTask(REGION), TileTask(replace(REGION, left=24), seed=9), TileTask(replace(REGION, top=8), denoise=0.3)]
    crops = [noisy(1), noisy(2, width=48), noisy(3)]
    together = drawn(bench, tiles(*tasks), *crops)
    alone = [drawn(bench, tiles(task), crop)[0] for task, crop in zip(tasks, crops, strict=True)]
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
    assert not torch.equal(together[0], drawn(bench, tiles(tasks[1]), crops[0])[0]), "the seed makes a difference"


def test_a_list_from_the_user_is_refused_and_not_dealt_out_to_the_tiles(bench: Bench) -> None:
    prompt = tiles(TileTask(REGION), TileTask(REGION))
    prompt["two"] = node("DistributedSource", slots="value")
    prompt["u~given"]["inputs"]["steps"] = out("two")
    feed = fed(bench, noisy(1), noisy(2))["feed"] | {"two": {"value": (LiteralValue(2), LiteralValue(3))}}
    with pytest.raises(UpscaleInputWrong, match=r"steps of upscale u .* is a list of 2 values"):
        bench.run(prompt, "u", feed=feed)


@pytest.mark.parametrize("borders", [(0, 5), (0, 2, 5), (0, 1, 2, 4, 5)])
def test_a_frame_has_the_noise_of_its_place_in_the_clip_whatever_the_group(bench: Bench, borders: tuple[int, ...]) -> None:
    clip = noisy(4, frames=1).expand(5, -1, -1, -1).contiguous()
    prompt = image_to_image(latent_image=out("2"))
    prompt["2"]["inputs"]["pixels"] = out("in")
    prompt["in"] = node("DistributedSource", slots="value")
    value = store_value(bench.blobs, "clip", clip, job_id="j", limit_bytes=2**30)
    (plain,) = bench.run(prompt, "9", feed={"in": {"value": (value,)}}).captures
    parts = []
    for first, end in pairwise(borders):
        region = REGION if end - first == 5 else replace(REGION, canvas_frames=5, first_frame=first, frames=end - first)
        prompt = tiles(TileTask(region))
        prompt["u~sample"]["inputs"]["steps"] = 3
        parts += drawn(bench, prompt, clip[first:end])
    assert torch.equal(torch.cat(parts), plain.value), "as a sampler that gets the whole clip"
    assert not torch.equal(plain.value[0], plain.value[1]), "frames differ by their noise alone"


def test_the_upscale_node_itself_says_that_it_must_be_planned(bench: Bench) -> None:
    upscale = {
        "model": out("m"), "positive": out("m", 1), "negative": out("m", 1), "vae": out("m", 2), "upscaled_image": out("1"), "seed": 1,
        "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5, "tile_width": 512, "tile_height": 512,
        "padding": 32, "mask_blur": 8, "force_uniform_tiles": True, "tiled_decode": False,
    }  # fmt: skip
    prompt = {**image_to_image(), "u": node("UltimateSDUpscaleDistributed", **upscale), "s": node("DistributedSink", images=out("u"))}
    with pytest.raises(UpscaleUndistributed):
        bench.run(prompt, "s")
