"""Previews of workers on their way to ComfyUI's page."""
from __future__ import annotations

import io
import logging
from typing import Any

from PIL import Image

log = logging.getLogger(__name__)


def preview_for_page(picture: bytes, side_px: int) -> tuple[str, Any, int | None] | None:
    """As ComfyUI's server takes one: format, PIL image, the longest side that it is brought to (None: as it is).

    A preview of latents is an eighth of the picture, and travels so; ComfyUI enlarges it for its page.

    Args:
        picture: JPEG or PNG.
        side_px: how large ComfyUI shows such previews.
    Returns:
        None where it cannot be read.
    """
    try:
        image = Image.open(io.BytesIO(picture))
        image.load()
    except OSError as error:
        log.debug("a preview cannot be read: %s", error)
        return None
    return ("JPEG", image.convert("RGB"), side_px if max(image.size) < side_px else None)
