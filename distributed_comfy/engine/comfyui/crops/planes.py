"""Cuts pictures, [..., H, W] tensors of any scale, to the region of a tile.

Where the region's edges fall between two pixels, the crop is a part of the picture at its own scale, and ComfyUI scales it to the tile
as it would have scaled the whole to the canvas. Elsewhere the crop is sampled at the places that belong to the tile, so that
nothing moves by part of a pixel. What the crop of the tile repeats at its right and lower edge is repeated here too.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from distributed_comfy.engine.comfyui.crops.lay import Axis, Fit, lay
from distributed_comfy.workflow.region import Region

LATENT_PX = 8
"""Image pixels to one of a latent, for everything that ComfyUI counts in latents without asking the model."""


@dataclass(frozen=True)
class Kind:
    """What ComfyUI does with one kind of picture."""

    fit: Fit
    smooth: bool
    """Scaled by bilinear interpolation; otherwise by the nearest pixel."""
    own_scale: bool = False
    """A crop that had to be sampled keeps the picture's scale; otherwise it has the pixels of the tile."""


HINT = Kind("centred", smooth=False)
SMOOTH_HINT = Kind("centred", smooth=True)
MASK = Kind("stretched", smooth=True)
ENCODED = Kind("encoded", smooth=True, own_scale=True)
REFERENCE = Kind("encoded", smooth=False, own_scale=True)


@dataclass(frozen=True)
class Sampling:
    """Where the pixels of a crop lie in the picture, on one axis."""

    before: list[int]
    after: list[int]
    weights: list[float]
    """Share of ``after``; all 0 where nothing is interpolated."""


def crop_planes(planes: Any, region: Region, kind: Kind) -> Any:
    """The part of a picture that belongs to a region.

    Args:
        planes: tensor [..., H, W]; its first axis may be the frames of the canvas. Not changed; the crop may be a view of it.
        region: of the tile; with frames, those of the item are taken out of a picture that has all of them.
        kind: of picture.
    """
    planes = _frames(planes, region)
    size = (int(planes.shape[-2]), int(planes.shape[-1]))
    if size == (1, 1):  # one value for everything
        return planes
    down, across = lay(size, region, kind.fit)
    if _fits(down, across, kind):
        return _taken(planes, _run(down), _run(across))
    return _sampled(planes, _sampling(down, kind), _sampling(across, kind))


def crop_images(images: Any, region: Region, kind: Kind) -> Any:
    """`crop_planes` for images [B, H, W, C]."""
    return crop_planes(images.movedim(-1, 1), region, kind).movedim(1, -1)


def _frames(planes: Any, region: Region) -> Any:
    if region.frames and planes.ndim > 2 and planes.shape[0] == region.canvas_frames:
        return planes[region.first_frame : region.first_frame + region.frames]
    return planes


def _fits(down: Axis, across: Axis, kind: Kind) -> bool:
    if not (down.fits and across.fits):
        return False
    if kind.fit == "centred" and down.step != across.step:  # ComfyUI would cut to the aspect once more
        return False
    # Enlarged by itself, a coarse crop would be flat near its edges, where the whole goes on to the next pixel.
    return kind.own_scale or not kind.smooth or max(down.step, across.step) <= LATENT_PX


# -- one axis -----------------------------------------------------------------------------------------------------------
def _run(axis: Axis) -> list[int]:
    start, stop, end = (int(place) for place in axis.box)
    return [min(pixel, stop - 1) for pixel in range(start, end)]


def _sampling(axis: Axis, kind: Kind) -> Sampling:
    grain = axis.step if kind.own_scale else Fraction(1)
    count, last = math.ceil(axis.region.process / grain), math.ceil(axis.region.length / grain) - 1
    places = [axis.pixel(axis.region.start + (min(number, last) + Fraction(1, 2)) * grain) for number in range(count)]
    if kind.smooth:
        return _between(axis, [place - Fraction(1, 2) for place in places])
    nearest = [_within(axis, math.floor(place)) for place in places]
    return Sampling(nearest, nearest, [0.0] * count)


def _between(axis: Axis, places: list[Fraction]) -> Sampling:
    floors = [math.floor(place) for place in places]
    return Sampling(
        [_within(axis, floor) for floor in floors],
        [_within(axis, floor + 1) for floor in floors],
        [float(place - floor) for place, floor in zip(places, floors, strict=True)],
    )


def _within(axis: Axis, pixel: int) -> int:
    return max(axis.first, min(pixel, axis.stop - 1))


# -- tensors ------------------------------------------------------------------------------------------------------------
def _sampled(planes: Any, rows: Sampling, columns: Sampling) -> Any:
    if not any(rows.weights) and not any(columns.weights):
        return _taken(planes, rows.before, columns.before)
    above = _mixed(_taken(planes, rows.before, columns.before), _taken(planes, rows.before, columns.after), columns.weights, -1)
    below = _mixed(_taken(planes, rows.after, columns.before), _taken(planes, rows.after, columns.after), columns.weights, -1)
    return _mixed(above, below, rows.weights, -2)


def _mixed(first: Any, second: Any, weights: list[float], axis: int) -> Any:
    share = first.new_tensor(weights)
    return first + (second - first) * (share if axis == -1 else share[:, None])


def _taken(planes: Any, rows: list[int], columns: list[int]) -> Any:
    """Those rows and columns; a view where they follow each other."""
    return _along(_along(planes, rows, -2), columns, -1)


def _along(planes: Any, pixels: list[int], axis: int) -> Any:
    if pixels == list(range(pixels[0], pixels[0] + len(pixels))):
        return planes.narrow(axis, pixels[0], len(pixels))
    import torch

    taken = planes.index_select(axis, torch.tensor(pixels, device=planes.device))
    # Kernels round differently in another memory format, and an image that a node gave would have kept its own.
    channels_last = planes.ndim == 4 and planes.shape[1] > 1 and planes.stride(1) == 1
    return taken.contiguous(memory_format=torch.channels_last) if channels_last else taken
