"""Previews of workers on their way to ComfyUI's page."""
from __future__ import annotations

import logging
from typing import Any

from distributed_comfy.errors import PictureUnreadable
from distributed_comfy.transport.pictures import read_picture

log = logging.getLogger(__name__)

_FORMATS = ("JPEG", "PNG")
"""Those in which ComfyUI and the built-in engine show their work."""
_MOST_PIXELS = 2**24


def preview_for_page(picture: bytes, side_px: int) -> tuple[str, Any, int | None] | None:
    """As ComfyUI's server takes one: format, PIL image, the longest side that it is brought to (None: as it is).

    A preview of latents is an eighth of the picture, and travels so; ComfyUI enlarges it for its page.

    Args:
        picture: JPEG or PNG, as a worker says.
        side_px: how large ComfyUI shows such previews.
    Returns:
        None where it cannot be read, is of another format, or too large: a preview never costs a prompt anything.
    """
    try:
        image = read_picture(picture, formats=_FORMATS, most_pixels=_MOST_PIXELS)
    except PictureUnreadable as error:
        log.debug("a preview is left out: %s", error)
        return None
    return ("JPEG", image.convert("RGB"), side_px if max(image.size) < side_px else None)
