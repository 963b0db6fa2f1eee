"""The seeded refiner: makes an enlarged picture sharp and paints strokes into it, step by step, without any model.

Each step moves every pixel towards the brighter or the darker side of the edge it lies on (a shock filter), so that blurred edges become
steep without rising above or falling below what lies beside them, and colours flow along the edges, which straightens them. Noise of the
seed flows along them too, until it looks like the bristles of a brush; the picture gets a share of it.

As in `pictures`, only operations on single elements are used that IEEE rounds the same way everywhere, so the bits do not depend on the
number of threads.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

_LONGEST_PASS = 0.4  # beyond half a pixel per pass a shock filter rings
_FULL_REACH_PX = 20.0
_STRAIGHTENING = 0.6
_SMOOTHINGS = 6
_STROKE_PASS = 0.2
_STROKE_DEPTH = 1.6
_LEAST_SLOPE = 1e-5
_LIGHTNESS = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Strength:
    """How much a refiner changes."""

    denoise: float
    """0 (nothing) to 1: the reach of the edges, of 20 pixels, and the share of the strokes."""
    edges: float
    """0 to 1."""
    strokes: float
    """0 to 1."""


class Refiner:
    """One picture on its way; `steps` refines it, `render` gives it at any time."""

    def __init__(self, image: torch.Tensor, noise: torch.Tensor, strength: Strength) -> None:
        """Args:
        image: [3, H, W] float32.
        noise: [1, H, W] float32 in [-1, 1].
        strength: of the change.
        """
        self._image = image
        self._noise = noise
        self._strength = strength
        self._done = 0.0

    def steps(self, count: int) -> Iterator[int]:
        """Refine in ``count`` steps; gives the number of each after it is done, from 1."""
        reach = self._strength.denoise * self._strength.edges * _FULL_REACH_PX
        passes = max(1, math.ceil(reach / count / _LONGEST_PASS))
        for step in range(count):
            for _ in range(passes):
                slopes = _slopes(_smooth(_lightness(self._image)))
                length = reach / count / passes
                moved = self._image - _shock(self._image, slopes) * length + _along(self._image, slopes) * (length * _STRAIGHTENING)
                self._image = _between_neighbours(moved, self._image)
                self._noise = self._noise + _along(self._noise, slopes) * _STROKE_PASS
            self._done = (step + 1) / count
            yield step + 1

    def render(self) -> torch.Tensor:
        """[3, H, W] float32; within [0, 1] where the image was."""
        share = self._strength.denoise * self._strength.strokes * self._done * _STROKE_DEPTH
        # Less in the lights and darks, so that nothing leaves the range; a picture beyond it gets none there.
        room = (self._image * (1 - self._image)).clamp(min=0)
        return self._image + self._noise.clamp(-1, 1) * room * share


@dataclass(frozen=True)
class _Slopes:
    """Derivatives of the lightness, [1, H, W] each."""

    x: torch.Tensor
    y: torch.Tensor
    xx: torch.Tensor
    yy: torch.Tensor
    xy: torch.Tensor


def seeded_noise(seed: int, frames: Sequence[int], size: tuple[int, int]) -> torch.Tensor:
    """[frames, 1, height, width] float32 in [-1, 1), the same on every device.

    Args:
        seed: 0 .. 2^64-1.
        frames: the place of each picture in a clip, from 0; a picture's noise depends on that, and not on which others are asked for.
        size: (height, width).
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for place in range(max(frames, default=-1) + 1):
        noise = torch.rand((1, *size), generator=generator)
        if place in frames:
            drawn[place] = noise * 2 - 1
    return torch.stack([drawn[place] for place in frames]) if drawn else torch.empty((0, 1, *size))


def _lightness(image: torch.Tensor) -> torch.Tensor:
    red, green, blue = (image[channel : channel + 1] * share for channel, share in enumerate(_LIGHTNESS))
    return red + green + blue


def _smooth(plane: torch.Tensor) -> torch.Tensor:
    """Blurred by a few pixels: the pixels that the image was enlarged from are no edges."""
    for _ in range(_SMOOTHINGS):
        left, right, up, down = _neighbours(plane)[:4]
        plane = plane * 0.5 + (left + right + up + down) * 0.125
    return plane


def _neighbours(plane: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Left, right, up, down; then up left, up right, down left, down right. Edges repeat."""
    height, width = plane.shape[-2:]
    wide = pad(plane[None], (1, 1, 1, 1), mode="replicate")[0]
    offsets = ((1, 0), (1, 2), (0, 1), (2, 1), (0, 0), (0, 2), (2, 0), (2, 2))
    return tuple(wide[:, top : top + height, left : left + width] for top, left in offsets)


def _between_neighbours(plane: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """No pixel brighter or darker than it or one of its neighbours was."""
    least = most = before
    for neighbour in _neighbours(before):
        least, most = torch.minimum(least, neighbour), torch.maximum(most, neighbour)
    return torch.minimum(torch.maximum(plane, least), most)


def _slopes(plane: torch.Tensor) -> _Slopes:
    left, right, up, down, up_left, up_right, down_left, down_right = _neighbours(plane)
    return _Slopes(
        x=(right - left) * 0.5,
        y=(down - up) * 0.5,
        xx=left + right - plane * 2,
        yy=up + down - plane * 2,
        xy=(down_right + up_left - up_right - down_left) * 0.25,
    )


def _shock(image: torch.Tensor, slopes: _Slopes) -> torch.Tensor:
    """Change per pixel of reach, [3, H, W]: up on the bright side of an edge, down on the dark one, by the slope that leads there."""
    bend = slopes.xx * slopes.x * slopes.x + slopes.xy * slopes.x * slopes.y * 2 + slopes.yy * slopes.y * slopes.y
    side = bend / (bend.abs() + 1e-7)
    left, right, up, down = _neighbours(image)[:4]
    falling = _length(_lesser(image - left, right - image), _lesser(image - up, down - image))
    return side * falling


def _lesser(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The smaller of two slopes where they agree in sign; none at a ridge, so that no new ones arise."""
    positive = torch.minimum(one, other).clamp(min=0)
    negative = torch.maximum(one, other).clamp(max=0)
    return positive + negative


def _length(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(x * x + y * y)


def _along(plane: torch.Tensor, slopes: _Slopes) -> torch.Tensor:
    """What flows in along the edges, [C, H, W]; a little from all sides where there are none."""
    left, right, up, down, up_left, up_right, down_left, down_right = _neighbours(plane)
    flow_x, flow_y = left + right - plane * 2, up + down - plane * 2
    across = (down_right + up_left - up_right - down_left) * 0.25
    xx, yy, xy = slopes.x * slopes.x, slopes.y * slopes.y, slopes.x * slopes.y
    edges = flow_x * yy - across * xy * 2 + flow_y * xx
    return (edges + (flow_x + flow_y) * (_LEAST_SLOPE * 0.25)) / (xx + yy + _LEAST_SLOPE)
