"""UltimateSDUpscaleDistributed: redraws an image tile by tile; in a distributed job each tile is an item."""
from __future__ import annotations

from typing import Any, ClassVar

from distributed_comfy.errors import UpscaleUndistributed
from distributed_comfy.workflow.classes import UPSCALE_CLASS
from distributed_comfy.workflow.samplers import UsualSamplers

MODES = ("chess", "linear", "independent")
"""Which tiles see others already redrawn; the first is the default."""
SEAM_FIXES = ("none", "band_pass", "half_tile", "half_tile_intersections")
TILE_SEEDS = ("same", "offset")
DETERMINISM = ("any", "same-class")

_TOOLTIPS = {
    "mode": "chess: tiles see those before them, many run at once; linear: row by row, few at once; independent: all at once, none seen.",
    "seam_fix": "Redraws the seams afterwards, for time: strips along them, whole tiles shifted by half, or these and the crossings.",
    "seam_fix_denoise": "How much a seam may change: more hides it better, and changes more of the picture.",
    "seam_fix_width": "Width of the strips of band_pass in pixels: wider hides more and takes longer.",
    "seam_fix_mask_blur": "Soft edge of what is redrawn, in pixels: wider blends better and leaves less of it at full strength.",
    "seam_fix_padding": "Pixels round a strip that the model sees: more fits in better and takes longer.",
    "tile_seeds": "same: one seed for all tiles, may repeat a texture; offset: another for each, may differ more at the seams.",
    "deterministic": "same-class: all tiles on one kind of GPU, the same bytes each time, but other kinds do not help.",
}


class UltimateSDUpscaleDistributed:
    """Redraws an image that is already enlarged, tile by tile; planning puts each tile's own nodes in its place.

    So this code runs only where a prompt was not planned as a job.
    """

    sampling: ClassVar[Any] = UsualSamplers
    """Where the engine lists its ``SAMPLERS`` and ``SCHEDULERS``, ComfyUI's ``KSampler`` class; set in the subclass that `bind` makes."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "image/upscaling"
    DESCRIPTION = "Redraws an enlarged image tile by tile, many tiles at once on all workers."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs.

        The required and the hidden ones are those of ComfyUI-Distributed, in its order, because saved workflows hold values by
        position; ours come after them.
        """
        return {"required": cls._required(), "optional": _optional(), "hidden": _hidden()}

    @classmethod
    def _required(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 64, "max": 2048, "step": 8}
        return {
            "upscaled_image": ("IMAGE",),
            "model": ("MODEL",),
            "positive": ("CONDITIONING",),
            "negative": ("CONDITIONING",),
            "vae": ("VAE",),
            "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}),
            "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
            "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1}),
            "sampler_name": (list(cls.sampling.SAMPLERS),),
            "scheduler": (list(cls.sampling.SCHEDULERS),),
            "denoise": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.01}),
            "tile_width": ("INT", side),
            "tile_height": ("INT", side),
            "padding": ("INT", {"default": 32, "min": 0, "max": 256, "step": 8}),
            "mask_blur": ("INT", {"default": 8, "min": 0, "max": 256}),
            "force_uniform_tiles": ("BOOLEAN", {"default": True}),
            "tiled_decode": ("BOOLEAN", {"default": False}),
        }

    def run(self, **inputs: Any) -> tuple[Any]:
        """
        Raises:
            UpscaleUndistributed: always; see the class.
        """
        raise UpscaleUndistributed(class_type=UPSCALE_CLASS)


def _optional() -> dict[str, Any]:
    return {
        "mode": _choice("mode", MODES),
        "seam_fix": _choice("seam_fix", SEAM_FIXES),
        "seam_fix_denoise": ("FLOAT", {"default": 0.35, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": _TOOLTIPS["seam_fix_denoise"]}),
        "seam_fix_width": _pixels("seam_fix_width", default=64, least=8, most=2048),
        "seam_fix_mask_blur": _pixels("seam_fix_mask_blur", default=8, least=0, most=256),
        "seam_fix_padding": _pixels("seam_fix_padding", default=16, least=0, most=256),
        "tile_seeds": _choice("tile_seeds", TILE_SEEDS),
        "deterministic": _choice("deterministic", DETERMINISM),
    }


def _hidden() -> dict[str, Any]:
    return {
        "multi_job_id": ("STRING", {"default": ""}),
        "is_worker": ("BOOLEAN", {"default": False}),
        "master_url": ("STRING", {"default": ""}),
        "enabled_worker_ids": ("STRING", {"default": "[]"}),
        "worker_id": ("STRING", {"default": ""}),
        "tile_indices": ("STRING", {"default": ""}),
        "dynamic_threshold": ("INT", {"default": 8, "min": 1, "max": 64}),
    }


def _choice(name: str, values: tuple[str, ...]) -> tuple[Any, ...]:
    return (list(values), {"default": values[0], "tooltip": _TOOLTIPS[name]})


def _pixels(name: str, *, default: int, least: int, most: int) -> tuple[Any, ...]:
    return ("INT", {"default": default, "min": least, "max": most, "tooltip": _TOOLTIPS[name]})
