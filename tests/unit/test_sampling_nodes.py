"""The built-in engine's way from image to image: SeededModel, VAEEncode, KSampler, VAEDecode, and a tile of an upscale over them."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_comfy.errors import ItemInterrupted, UpscaleUndistributed, ValidationRefused
from distributed_comfy.messages import Prompt
from distributed_comfy.transport.values import store_value
from tests.prompts import node, out
from tests.unit.builtin_engine import Bench, RecordingSink

REGION = {
    "canvas_width": 64, "canvas_height": 64, "left": 0, "top": 0, "width": 40, "height": 32, "process_width": 40, "process_height": 32,
}  # fmt: skip


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
    assert gives_models == {"SeededModel", "DistributedTileModel", "DistributedTileConditioning"}
    assert capability.seed_limits["KSampler"]["seed"] == str(2**64 - 1)


# -- one tile of an upscale, as planning writes it ----------------------------------------------------------------------
def tile(denoise: float, **region: int) -> Prompt:
    place = {**REGION, **region}
    return {
        "m": node("SeededModel", edges=0.8, strokes=0.6),
        "u~pixels": node("DistributedSource", slots="value"),
        "u~model": node("DistributedTileModel", model=out("m"), **place),
        "u~positive": node("DistributedTileConditioning", conditioning=out("m", 1), **place),
        "u~negative": node("DistributedTileConditioning", conditioning=out("m", 1), **place),
        "u~encode": node("VAEEncode", pixels=out("u~pixels"), vae=out("m", 2)),
        "u~sample": node(
            "KSampler", model=out("u~model"), seed=1, steps=2, cfg=8.0, sampler_name="euler", scheduler="normal", denoise=denoise,
            positive=out("u~positive"), negative=out("u~negative"), latent_image=out("u~encode"),
        ),
        "u~decode": node("VAEDecode", samples=out("u~sample"), vae=out("m", 2)),
        "u": node("DistributedSink", images=out("u~decode")),
    }  # fmt: skip


def fed(bench: Bench, pixels: torch.Tensor) -> dict[str, Any]:
    value = store_value(bench.blobs, "tile", pixels, job_id="j", limit_bytes=2**30)
    return {"feed": {"u~pixels": {"value": (value,)}}}


def test_a_tile_of_an_upscale_runs_as_a_prompt_and_keeps_its_bits_at_denoise_0(bench: Bench) -> None:
    pixels = torch.rand((3, 32, 40, 3), generator=torch.Generator().manual_seed(1))
    (capture,) = bench.run(tile(0.0), "u", **fed(bench, pixels)).captures
    assert torch.equal(capture.value, pixels)


def test_the_second_tile_makes_no_model_anew(bench: Bench) -> None:
    pixels = torch.rand((1, 32, 40, 3))
    bench.run(tile(0.5), "u", **fed(bench, pixels))
    assert "SeededModel" in bench.counting.calls
    bench.run(tile(0.5, left=24), "u", **fed(bench, pixels))
    assert sorted(bench.counting.calls) == sorted([
        "DistributedSource", "DistributedTileModel", "DistributedTileConditioning", "DistributedTileConditioning", "VAEEncode",
        "KSampler", "VAEDecode", "DistributedSink",
    ])  # fmt: skip


def test_the_upscale_node_itself_says_that_it_must_be_planned(bench: Bench) -> None:
    upscale = {
        "model": out("m"), "positive": out("m", 1), "negative": out("m", 1), "vae": out("m", 2), "upscaled_image": out("1"), "seed": 1,
        "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5, "tile_width": 512, "tile_height": 512,
        "padding": 32, "mask_blur": 8, "force_uniform_tiles": True, "tiled_decode": False,
    }  # fmt: skip
    prompt = {**image_to_image(), "u": node("UltimateSDUpscaleDistributed", **upscale), "s": node("DistributedSink", images=out("u"))}
    with pytest.raises(UpscaleUndistributed):
        bench.run(prompt, "s")
