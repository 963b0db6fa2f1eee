"""Keeps the pictures that scripts take for the documents."""
from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
LIMIT_BYTES = 150_000


def keep(png: bytes, name: str, bottom: int = 0) -> None:
    """A screenshot into docs/images; all of it, or down to a line."""
    picture: Image.Image = Image.open(io.BytesIO(png))
    if bottom:
        picture = picture.crop((0, 0, picture.width, min(picture.height, bottom)))
    path = IMAGES / f"{name}.webp"
    picture.convert("RGB").save(path, quality=82, method=6)
    tell(path)


def tell(path: Path) -> None:
    """Where a picture is, and that it is small enough."""
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size // 1000} kB")
    if size > LIMIT_BYTES:
        sys.exit(f"{path} has more than {LIMIT_BYTES} bytes")
