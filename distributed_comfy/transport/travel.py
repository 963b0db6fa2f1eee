"""Which encoding each tensor of a job travels in: the job's `FramePlan`, applied to one place after the other."""
from __future__ import annotations

from distributed_comfy.frame_plan import FramePlan
from distributed_comfy.transport.encodings import Encoding, zstandard

_IMAGES = "images"
_OF_STEPS: dict[str, Encoding] = {"zstd": "zstd", "fp16": "float16", "lossy": "float16"}
"""What the job goes on computing with: ``lossy`` spares it the marks of a JPEG, which an upscale would take for a part of the picture."""


def capture_encoding(plan: FramePlan, node_id: str, slot: str) -> Encoding:
    """For what a sink took: the images of a collector, or another value."""
    if slot == _IMAGES and node_id in plan.pictures:
        if plan.option == "lossy":
            return "jpeg"
        if plan.option == "auto" and node_id in plan.eight_bit:
            return "uint8"
    return step_encoding(plan)


def step_encoding(plan: FramePlan) -> Encoding:
    """For what items are given to compute with, and give back to be computed with: crops, tiles, values of crossing edges."""
    return _OF_STEPS.get(plan.option, "plain")


def canvas_encoding(plan: FramePlan, node_id: str) -> Encoding:
    """For a finished upscale on its way to the last stage."""
    return "uint8" if plan.option == "lossy" or (plan.option == "auto" and node_id in plan.eight_bit) else "plain"


def loses_bits(plan: FramePlan) -> bool:
    """Whether a tensor of the job may arrive as another than it was."""
    return plan.option in ("fp16", "lossy") or (plan.option == "auto" and bool(plan.eight_bit))


def check_here(plan: FramePlan) -> None:
    """
    Raises:
        FrameEncodingMissing: whoever asks could not read what the job sends.
    """
    if plan.option == "zstd":
        zstandard()
