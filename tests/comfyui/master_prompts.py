"""Prompts for a master: what a script would post, with nodes that show what ran where and how long it takes."""
from __future__ import annotations

from typing import Any

from tests.comfyui.tiny_prompts import distributed
from tests.prompts import node, out

Prompt = dict[str, Any]


def pictures(label: str, items: int = 4, *, seed: int = 100, steps: int = 1, side: int = 16, **collector: Any) -> Prompt:
    """seed -> a picture that shows it -> some steps of 20 ms -> collector -> the seeds that were collected, in a file."""
    return {
        "seed": node("DistributedSeed", seed=seed),
        "image": node("RuleImage", seed=out("seed"), width=side, height=side, batch_size=1, channels=3),
        "work": node("ProbeSteps", images=out("image"), steps=steps, stubborn=False, salt=0),
        "9": node("DistributedCollector", images=out("work"), items=items, **collector),
        "show": node("RuleRecord", images=out("9"), label=label),
    }


def plain_work(label: str, steps: int, salt: int = 1) -> Prompt:
    """A prompt without a collector that keeps ComfyUI busy; of the same salt and steps, once."""
    return {
        "image": node("RuleImage", seed=7, width=8, height=8, batch_size=1, channels=3),
        "work": node("ProbeSteps", images=out("image"), steps=steps, stubborn=False, salt=salt),
        "show": node("RuleRecord", images=out("work"), label=label),
    }


def upscale(items: int, *, seed: int = 100, side: int = 200, tile: int = 128) -> Prompt:
    """The tiny model -> collector -> enlarged -> upscale (node ``up``); what was collected is saved, too."""
    prompt = distributed(seed=seed, side=64)
    prompt["5"]["inputs"]["batch_size"] = 1
    prompt["9"]["inputs"]["items"] = items
    return {
        **prompt,
        "big": node("ImageScale", image=out("9"), upscale_method="bicubic", width=side, height=side, crop="disabled"),
        "up": node(
            "UltimateSDUpscaleDistributed", upscaled_image=out("big"), model=out("1"), positive=out("3"), negative=out("4"), vae=out("2"),
            seed=3, steps=2, cfg=3.0, sampler_name="euler", scheduler="simple", denoise=0.4, tile_width=tile, tile_height=tile, padding=16,
            mask_blur=8, force_uniform_tiles=True, tiled_decode=False,
        ),
    }  # fmt: skip
