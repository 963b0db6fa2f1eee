"""Areas and boxes of a conditioning: plain numbers, in latent pixels or as parts of the canvas, told from the corner of a tile."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from distributed_comfy.engine.comfyui.crops.planes import LATENT_PX
from distributed_comfy.workflow.region import Region, RegionAxis

PERCENTAGE = "percentage"
"""First element of an area that is given as parts of the canvas."""

Area = tuple[Any, ...]
"""Lengths of all axes, then their starts: (height, width, y, x), for video with time before height and before y."""

WHOLE: Area = ()
"""An area that covers all of a tile, which ComfyUI says by giving none."""


def crop_area(area: Sequence[Any], region: Region) -> Area | None:
    """An area told from the corner of a region.

    Edges are rounded to latent pixels as ComfyUI rounds them on the whole canvas, then to those of the tile.

    Args:
        area: in latent pixels, or parts of the canvas behind the word ``percentage``.
        region: of the tile.
    Returns:
        The area in the same form; `WHOLE`; or None where nothing of it lies in the region.
    """
    parts = area[0] == PERCENTAGE
    numbers = list(area[1:] if parts else area)
    axes = len(numbers) // 2
    if axes < 2:  # sound
        return tuple(area)
    whole = axes == 2
    for number, axis in ((axes - 2, region.down), (axes - 1, region.across)):
        start, stop = _latents(numbers[axes + number], numbers[number], axis, parts=parts)
        cut = _cut(start, stop, axis)
        if cut is None:
            return None
        whole = whole and cut == (0, axis.process // LATENT_PX)
        numbers[axes + number], numbers[number] = _as_given(cut, axis, parts=parts)
    if whole:
        return WHOLE
    return (PERCENTAGE, *numbers) if parts else tuple(numbers)


def crop_boxes(boxes: Iterable[Sequence[Any]], region: Region) -> list[tuple[Any, ...]]:
    """Text boxes, (embedding, height, width, y, x) in latent pixels, told from the corner of a region; exact, so perhaps fractions.

    A box that sticks out is cut off, one outside is left out.
    """
    cropped = []
    for embedding, height, width, y, x, *rest in boxes:
        down, across = _visible(y, height, region.down), _visible(x, width, region.across)
        if down is not None and across is not None:
            cropped.append((embedding, down[1], across[1], down[0], across[0], *rest))
    return cropped


def _latents(start: Any, length: Any, axis: RegionAxis, *, parts: bool) -> tuple[int, int]:
    """Start and stop on the canvas, in latent pixels."""
    if not parts:
        return int(start), int(start) + int(length)
    whole = axis.canvas // LATENT_PX
    first = round(start * whole)
    return first, first + max(1, round(length * whole))


def _cut(start: int, stop: int, axis: RegionAxis) -> tuple[int, int] | None:
    """Start and stop in latent pixels of the tile."""
    first = max(0, _rounded(Fraction(start * LATENT_PX - axis.start, LATENT_PX)))
    end_px = axis.canvas if stop >= axis.canvas // LATENT_PX else stop * LATENT_PX
    # What the crop repeats belongs to what lies at its edge.
    last = axis.process // LATENT_PX if end_px >= axis.stop else _rounded(Fraction(end_px - axis.start, LATENT_PX))
    begins_behind = start * LATENT_PX >= axis.stop
    return None if begins_behind or last <= first else (first, last)


def _as_given(cut: tuple[int, int], axis: RegionAxis, *, parts: bool) -> tuple[Any, Any]:
    """Start and length in the form of the area."""
    start, length = cut[0], cut[1] - cut[0]
    return (start * LATENT_PX / axis.process, length * LATENT_PX / axis.process) if parts else (start, length)


def _visible(start: Any, length: Any, axis: RegionAxis) -> tuple[Any, Any] | None:
    """Start and length of what of a box lies in the region, in latent pixels of the tile."""
    first = max(Fraction(start) * LATENT_PX, Fraction(axis.start))
    stop = min(Fraction(start + length) * LATENT_PX, Fraction(axis.stop))
    return None if stop <= first else (_plain((first - axis.start) / LATENT_PX), _plain((stop - first) / LATENT_PX))


def _plain(number: Fraction) -> int | float:
    return int(number) if number.denominator == 1 else float(number)


def _rounded(number: Fraction) -> int:
    """To the nearest whole number, halves up."""
    return (2 * number.numerator + number.denominator) // (2 * number.denominator)
