"""How the tensors of one job travel: a record that planning writes and every worker reads."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

FrameOption = Literal["exact", "auto", "zstd", "fp16", "lossy"]
"""``exact``: as they are; ``auto``: in 8 bits where nothing but 8 bits is made of them, else exact; ``zstd``: smaller, bit for bit;
``fp16``: as float16; ``lossy``: collected images as JPEG, all else as float16. docs/slow-links.md has the numbers."""

FRAME_OPTIONS: tuple[FrameOption, ...] = get_args(FrameOption)


@dataclass(frozen=True)
class FramePlan:
    """How the tensors of a job travel, place by place."""

    option: FrameOption = "exact"
    """What was asked for."""
    eight_bit: tuple[str, ...] = ()
    """Nodes (collectors, an upscale) of whose images nothing but 8 bits is used."""
    pictures: tuple[str, ...] = ()
    """Collectors of images, but for those of which an upscale is made."""
