"""Small prompts with a tiled upscale, and a worker that has their classes."""
from __future__ import annotations

from typing import Any

from distributed_comfy.messages import Capability, Prompt
from distributed_comfy.planning.plan import JobPlan, PlanOptions, plan_job
from tests.prompts import OUTPUT_TYPES, capability, node, out, parsed, txt2img, without

TYPES = {
    **OUTPUT_TYPES,
    "ImageScale": ("IMAGE",),
    "Canny": ("IMAGE",),
    "Caption": ("STRING",),
    "Wildcard": ("STRING",),
    "SamplerChoice": ("COMBO",),
    "ControlNetLoader": ("CONTROL_NET",),
    "LoraLoaderModelOnly": ("MODEL",),
    "VAELoader": ("VAE",),
    "RandomInt": ("INT",),
    "LoadClip": ("IMAGE", "AUDIO"),
    "VAEDecodeTiled": ("IMAGE",),
    "DistributedCollector": ("IMAGE", "AUDIO", "LATENT", "MASK"),
    "UltimateSDUpscaleDistributed": ("IMAGE",),
}
WIDGETS = {
    "seed": 42, "steps": 12, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.4, "tile_width": 512,
    "tile_height": 512, "padding": 32, "mask_blur": 8, "force_uniform_tiles": True, "tiled_decode": False,
}  # fmt: skip
"""What a saved workflow holds."""


def upscale(image: str | list[Any] = "scale", **inputs: Any) -> dict[str, Any]:
    """An upscale of what node ``image`` gives."""
    links = {
        "upscaled_image": out(image) if isinstance(image, str) else image, "model": out("ckpt"), "positive": out("pos"),
        "negative": out("neg"), "vae": out("ckpt", 2),
    }  # fmt: skip
    return node("UltimateSDUpscaleDistributed", **{**links, **WIDGETS, **inputs})


def photo(**inputs: Any) -> Prompt:
    """LoadImage -> scale -> upscale -> SaveImage."""
    return {
        **without(txt2img(), "latent", "seed", "sample", "decode", "collect", "save"),
        "load": node("LoadImage", image="x.png"),
        "scale": node("ImageScale", image=out("load"), width=2048, height=2048),
        "up": upscale(**inputs),
        "save": node("SaveImage", images=out("up"), filename_prefix="x"),
    }


def batch(**inputs: Any) -> Prompt:
    """seed -> sampler -> decode -> collector -> scale -> upscale -> SaveImage."""
    return {
        **txt2img(),
        "scale": node("ImageScale", image=out("collect"), width=2048, height=2048),
        "up": upscale(**inputs),
        "save": node("SaveImage", images=out("up"), filename_prefix="x"),
    }


def worker(**changes: Any) -> Capability:
    """A worker for all of them."""
    return capability(**{"node_classes": tuple(sorted(TYPES)), "output_types": TYPES, **changes})


def plan(prompt: Prompt, *, known: bool = True, **options: Any) -> JobPlan:
    """The plan of a job."""
    return plan_job(parsed(prompt), PlanOptions(**options), [worker()] if known else [])


def stage(job: JobPlan, kind: str) -> Prompt:
    """The prompt of the first item of this kind, or of tiles."""
    assert job.tiles is not None
    key = job.tiles.prompt_hash if kind == "tile" else next(item.prompt_hash for item in job.items if item.kind == kind)
    return job.prompts[key]
