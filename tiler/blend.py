"""Blending: a refined tile into the canvas, in place, touching nothing outside its write box."""
from __future__ import annotations

import numpy as np

from tiler.crop import Pixels, all_finite
from tiler.errors import ImageInvalid, TileNotFinite, TileShapeError
from tiler.plan import TileStep
from tiler.weights import zones


def blend_tile(canvas: Pixels, step: TileStep, tile: Pixels) -> None:
    """Let the tile take its share of the canvas: ``x + alpha * (t - x)`` on the ramps, the tile itself elsewhere.

    A pixel that the tile did not change keeps its very bits. Tiles whose boxes meet must be blended in plan order (`Schedule`).

    Args:
        canvas: [F, H, W, C] float32, changed in place; a memory map serves, too.
        tile: [F, h, w, C] float32 of ``step.size``, as `cut_tile` gave it, refined.
    Raises:
        TileShapeError: the tile has another shape or type.
        TileNotFinite: it has NaN or infinite pixels; the canvas is unchanged.
        ImageInvalid: the canvas is too small, not float32 or read-only.
    """
    _check_canvas(canvas, step)
    check_tile(canvas, step, tile)
    left, top = step.read.left, step.read.top
    for zone in zones(step):
        inside = np.s_[zone.y.start - top : zone.y.stop - top, zone.x.start - left : zone.x.stop - left]
        below = np.s_[zone.y.start : zone.y.stop, zone.x.start : zone.x.stop]
        for frame, refined in zip(canvas, tile, strict=True):  # frame by frame: what is made on the way stays small
            if zone.alpha is None:
                frame[below] = refined[inside]
            else:
                _fade(frame[below], refined[inside], zone.alpha[:, :, None])


def _fade(below: Pixels, refined: Pixels, alpha: Pixels) -> None:
    mixed = refined - below
    mixed *= alpha
    mixed += below
    # Where both are equal the sum is too, but for the sign of a zero.
    np.copyto(below, mixed, where=refined != below)


def check_tile(canvas: Pixels, step: TileStep, tile: Pixels) -> None:
    """Whether a refined tile fits its step; see `blend_tile`."""
    shape = (canvas.shape[0], step.size.height, step.size.width, canvas.shape[3])
    if tile.shape != shape or tile.dtype != np.float32:
        raise TileShapeError(index=step.index, expected=f"float32 {list(shape)}", actual=f"{tile.dtype} {list(tile.shape)}")
    if not all_finite(tile):
        raise TileNotFinite(index=step.index, count=int(np.count_nonzero(~np.isfinite(tile))))


def _check_canvas(canvas: Pixels, step: TileStep) -> None:
    box = step.write
    if canvas.ndim != 4 or canvas.shape[1] < box.bottom or canvas.shape[2] < box.right:
        raise ImageInvalid(problem=f"has shape {list(canvas.shape)}", expected=f"[frames, height, width, channels] and hold the box {box}")
    if canvas.dtype != np.float32 or not canvas.flags.writeable:
        kind = str(canvas.dtype) if canvas.flags.writeable else "read-only"
        raise ImageInvalid(problem=f"is {kind}", expected="a writable array of float32 to blend into")
