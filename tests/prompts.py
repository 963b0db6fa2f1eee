"""Small prompts and capabilities that several tests share."""
from __future__ import annotations

from typing import Any

from distributed_comfy.messages import Capability, ItemSpec, Prompt
from distributed_comfy.planning.plan import JobPlan
from distributed_comfy.workflow.parse import ParsedPrompt, parse_prompt

OUTPUT_TYPES = {
    "CheckpointLoaderSimple": ("MODEL", "CLIP", "VAE"),
    "CLIPTextEncode": ("CONDITIONING",),
    "EmptyLatentImage": ("LATENT",),
    "KSampler": ("LATENT",),
    "VAEDecode": ("IMAGE",),
    "VAEEncode": ("LATENT",),
    "VAEDecodeAudio": ("AUDIO",),
    "ControlNetApply": ("CONDITIONING",),
    "LoadImage": ("IMAGE", "MASK"),
    "ImageBlend": ("IMAGE",),
    "ImageInvert": ("IMAGE",),
    "GetImageSize": ("INT", "INT", "INT"),
    "PrimitiveInt": ("INT",),
    "Switch": ("*",),
    "ImageBatchDivider": ("IMAGE",) * 10,
    "ModelTap": ("MODEL",),
    "PreviewImage": (),
    "SaveImage": (),
    "SaveLatent": (),
    "DistributedSeed": ("INT",),
    "DistributedCollector": ("IMAGE", "AUDIO"),
}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node; ``out("4", 1)`` makes a link."""
    return {"class_type": class_type, "inputs": inputs}


def out(node_id: str, slot: int = 0) -> list[Any]:
    """A link to an output."""
    return [node_id, slot]


def txt2img(seed: Any = 100, **collector: Any) -> Prompt:
    """seed -> sampler -> decode -> collector -> SaveImage, with the loader used on both sides of nothing."""
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
        "pos": node("CLIPTextEncode", text="a cat", clip=out("ckpt", 1)),
        "neg": node("CLIPTextEncode", text="", clip=out("ckpt", 1)),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "seed": node("DistributedSeed", seed=seed),
        "sample": node(
            "KSampler", model=out("ckpt"), positive=out("pos"), negative=out("neg"), latent_image=out("latent"), seed=out("seed"), steps=4
        ),
        "decode": node("VAEDecode", samples=out("sample"), vae=out("ckpt", 2)),
        "collect": node("DistributedCollector", images=out("decode"), load_balance=False, **collector),
        "save": node("SaveImage", images=out("collect"), filename_prefix="x"),
    }


def without(prompt: Prompt, *ids: str) -> Prompt:
    """The prompt less these nodes."""
    return {node_id: value for node_id, value in prompt.items() if node_id not in ids}


def parsed(prompt: Prompt) -> ParsedPrompt:
    """The prompt as `parse_prompt` gives it."""
    return parse_prompt(prompt)


def capability(**changes: Any) -> Capability:
    """A worker that has every class of these prompts."""
    facts: dict[str, Any] = {
        "engine": "comfyui",
        "engine_version": "0.3.64",
        "node_classes": tuple(sorted(OUTPUT_TYPES)),
        "output_classes": ("ImageBatchDivider", "ModelTap", "PreviewImage", "SaveImage", "SaveLatent"),
        "choice_lists": (("a.safetensors", "sub/b.safetensors"), ("x.png",)),
        "choices": {"CheckpointLoaderSimple": {"ckpt_name": 0}, "LoadImage": {"image": 1}},
        "file_inputs": {"LoadImage": {"image": "input"}},
        "seed_limits": {"KSampler": {"seed": str(2**64 - 1)}, "DistributedSeed": {"seed": str(2**50)}},
        "output_types": OUTPUT_TYPES,
    }
    return Capability(**{**facts, **changes})


def generate_items(job: JobPlan) -> tuple[ItemSpec, ...]:
    """The items of a job without the one that prepares an upscale and without the last stage."""
    return job.items[: len(job.items) - job.has_last_stage - job.has_prepare]
