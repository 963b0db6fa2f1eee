"""DistributedSeed: marks the seed that differs from item to item."""
from __future__ import annotations

from typing import Any


class DistributedSeed:
    """Gives its seed unchanged; planning replaces it by base seed + item index before an item is queued."""

    RETURN_TYPES = ("INT",)
    RETURN_NAMES = ("seed",)
    FUNCTION = "distribute"
    CATEGORY = "utils"
    DESCRIPTION = "Item k of a distributed job samples with this seed + k."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs; the hidden ones keep saved prompts of ComfyUI-Distributed valid."""
        return {
            "required": {"seed": ("INT", {"default": 1125899906842, "min": 0, "max": 1125899906842624})},
            "hidden": {"is_worker": ("BOOLEAN", {"default": False}), "worker_id": ("STRING", {"default": ""})},
        }

    def distribute(self, seed: int, is_worker: bool = False, worker_id: str = "") -> tuple[int]:
        """The seed as it is; this runs only where a prompt is not distributed."""
        return (seed,)
