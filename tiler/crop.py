"""Cutting: a step's read box out of the canvas, at the size that the model works on."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tiler.boxes import Size
from tiler.errors import ImageInvalid
from tiler.plan import TileStep

Pixels = NDArray[np.float32]
"""[frames, height, width, channels], usually in [0, 1]; a memory map serves, too."""
MOST_CHANNELS = 4


def cut_tile(canvas: Pixels, step: TileStep) -> Pixels:
    """The pixels that the step sees.

    Args:
        canvas: [F, H, W, C] of any float type, of the plan's size.
    Returns:
        [F, h, w, C] float32, contiguous, of ``step.size``; where that is more than the read box, its last column and row are repeated.
    Raises:
        ImageInvalid: the canvas does not hold the read box.
    """
    box, size = step.read, step.size
    if canvas.ndim != 4 or canvas.shape[1] < box.bottom or canvas.shape[2] < box.right:
        raise ImageInvalid(problem=f"has shape {list(canvas.shape)}", expected=f"[frames, height, width, channels] and hold the box {box}")
    tile = np.empty((canvas.shape[0], size.height, size.width, canvas.shape[3]), np.float32)
    tile[:, : box.height, : box.width] = canvas[:, box.top : box.bottom, box.left : box.right]
    tile[:, : box.height, box.width :] = tile[:, : box.height, box.width - 1 : box.width]
    tile[:, box.height :] = tile[:, box.height - 1 : box.height]
    return tile


def check_image(image: Pixels, size: tuple[int, int]) -> None:
    """Whether an image can be tiled by a plan of this size.

    Raises:
        ImageInvalid: it has no frames, another size, too many channels, another type than float32, or NaN or infinite pixels.
    """
    shape, wanted = image.shape, Size(*size)
    expected = f"[frames, {wanted.height}, {wanted.width}, 1 to {MOST_CHANNELS} channels] of finite float32"
    if len(shape) != 4 or shape[1:3] != (wanted.height, wanted.width) or not 1 <= shape[3] <= MOST_CHANNELS:
        raise ImageInvalid(problem=f"has shape {list(shape)}", expected=expected)
    if shape[0] < 1:
        raise ImageInvalid(problem="has no frames", expected=expected)
    if image.dtype != np.float32:
        raise ImageInvalid(problem=f"has type {image.dtype}", expected=expected)
    for number, frame in enumerate(image):
        for row in frame:  # row by row, so that no mask of a whole frame is made
            if not all_finite(row):
                raise ImageInvalid(problem=f"has NaN or infinite pixels in frame {number}", expected=expected)


def all_finite(pixels: Pixels) -> bool:
    """True if every pixel is finite; makes a mask only where the sum alone does not tell."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(np.sum(pixels))
    return bool(np.isfinite(total)) or bool(np.isfinite(pixels).all())
