"""Pictures that another host made, decoded: of the common formats alone, bounded in size, with one error whatever is wrong with one."""
from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from distributed_comfy.errors import PictureUnreadable

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""What is made of images here.  Pillow knows formats that it reads with other programs (EPS with Ghostscript), and whoever sends a picture
chooses by its first bytes, not by its name."""
MOST_PIXELS = 2**27
"""Of a result that is looked at."""


def read_picture(source: bytes | Path, *, formats: tuple[str, ...] = FORMATS, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """The picture, decoded; of several frames the first.

    Args:
        source: the bytes of a file, or where one lies.
        formats: names of Pillow's.
        most_pixels: compared before anything is decoded.
    Raises:
        PictureUnreadable: it is none, of another format, or too large.
    """
    try:
        image: Image.Image
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            if image.width * image.height <= most_pixels:
                image.load()
                return image
    except Exception as error:  # whatever Pillow's decoders raise for bytes of anybody
        raise PictureUnreadable(reason=f"{type(error).__name__}: {error}", formats=", ".join(formats)) from error
    raise PictureUnreadable(reason=f"it has {image.width} x {image.height} pixels, limit {most_pixels}", formats=", ".join(formats))
