"""Where the pixels of a picture lie on the canvas, axis by axis, in exact fractions."""
from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from distributed_comfy.workflow.region import Region, RegionAxis

Fit = Literal["centred", "stretched", "encoded"]
"""How ComfyUI lays a picture of another size over an image: cut to the image's aspect round the centre and stretched (``centred``), only
stretched, or made from it by a VAE or node that left out a few pixels at all sides so that the rest divides evenly (``encoded``; where
the sizes do not look like that, ``centred``)."""

_DIVISORS = (1, 2, 4, 8, 16, 32, 64)
_EVEN = 8  # nodes that encode cut images to multiples of it, whatever their VAE needs


@dataclass(frozen=True)
class Axis:
    """One axis of a picture on the canvas."""

    region: RegionAxis
    offset: Fraction
    """Canvas position where pixel 0 begins; negative for pixels that were cut off."""
    step: Fraction
    """Canvas pixels that one pixel of the picture covers."""
    first: int
    """The first pixel that is shown, and the one behind the last."""
    stop: int

    def pixel(self, place: Fraction | int) -> Fraction:
        """A canvas position in pixels of the picture."""
        return (place - self.offset) / self.step

    @property
    def box(self) -> tuple[Fraction, Fraction, Fraction]:
        """Start and stop of the region and stop of its crop as processed, in pixels of the picture."""
        start = self.region.start
        return self.pixel(start), self.pixel(self.region.stop), self.pixel(start + self.region.process)

    @property
    def fits(self) -> bool:
        """True where the region begins and ends between two pixels."""
        start, stop, end = self.box
        whole = all(place.denominator == 1 for place in (start, stop, end))
        # Of a finer picture the canvas does not show the last pixels, so they are not what the crop of the canvas repeats.
        repeats_another = end > stop and self.step < 1
        return whole and self.first <= start and stop <= self.stop and not repeats_another


def lay(size: tuple[int, int], region: Region, fit: Fit) -> tuple[Axis, Axis]:
    """The two axes of a picture, first down, then across.

    Args:
        size: (height, width) of the picture.
        region: for the size of the canvas.
        fit: how the picture lies on it.
    """
    axes = (region.down, region.across)
    if fit == "stretched":
        return _stretched(size[0], axes[0], 0), _stretched(size[1], axes[1], 0)
    if fit == "encoded" and (divisor := _divisor(size, axes)):
        return _encoded(size[0], axes[0], divisor), _encoded(size[1], axes[1], divisor)
    down, across = _cut_to_aspect(size, axes[1].canvas / axes[0].canvas)
    return _stretched(size[0], axes[0], down), _stretched(size[1], axes[1], across)


def same_aspect(size: tuple[int, int], region: Region) -> bool:
    """Whether a picture may show the canvas: its aspect is that of the canvas, to a pixel."""
    height, width = size
    return abs(width * region.canvas_height - height * region.canvas_width) <= max(region.canvas_width, region.canvas_height)


def _stretched(size: int, axis: RegionAxis, cut: int) -> Axis:
    step = Fraction(axis.canvas, size - 2 * cut)
    return Axis(axis, -cut * step, step, cut, size - cut)


def _encoded(size: int, axis: RegionAxis, divisor: int) -> Axis:
    return Axis(axis, Fraction((axis.canvas - size * divisor) // 2), Fraction(divisor), 0, size)


def _divisor(size: tuple[int, int], axes: tuple[RegionAxis, RegionAxis]) -> int:
    """Canvas pixels per pixel of a picture that an encoder made of the canvas; 0 where none fits."""
    for divisor in _DIVISORS:
        rests = [axis.canvas - length * divisor for length, axis in zip(size, axes, strict=True)]
        if all(0 <= rest < max(divisor, _EVEN) for rest in rests):
            return divisor
    return 0


def _cut_to_aspect(size: tuple[int, int], aspect: float) -> tuple[int, int]:
    """Rows and columns that ComfyUI leaves out at each side; in floats as there, for the rounding."""
    height, width = size
    own = width / height
    if own > aspect:
        return 0, min(round((width - width * (aspect / own)) / 2), (width - 1) // 2)
    if own < aspect:
        return min(round((height - height * (own / aspect)) / 2), (height - 1) // 2), 0
    return 0, 0
