"""How a collected value becomes files: images and masks as PNG, audio as WAV of 32-bit floats, latents as ComfyUI's ``.latent``.

PNG and its text chunks are those of ComfyUI's SaveImage. WAV and latents hold the very numbers that were collected.
"""
from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from distributed_comfy.collector.assemble import PlacedValue, audio_parts, image_ref, samples_ref
from distributed_comfy.errors import PictureUnsavable, ValueUnsavable
from distributed_comfy.messages import MappingValue, TensorRef
from distributed_comfy.transport.latents import latent_file

COMPRESS_LEVEL = 4
"""Of PNG, as ComfyUI's SaveImage."""

Texts = Mapping[str, Any]
"""What a file says about itself: keyword -> JSON value."""

_WAV_LIMIT_BYTES = 2**32 - 2**10
_WAV_FLOAT = 3


@dataclass(frozen=True)
class FilePlan:
    """One file of a captured value."""

    ref: TensorRef
    """What it is made of."""
    batch_index: int
    """Which element of that, along its first axis; 0 for a file of all of them."""
    suffix: str
    write: Callable[[Path, NDArray[Any], Texts], None]
    """Writes it: the path, the whole tensor, and what the file is to say about itself."""


def plan_files(slot: str, placed: PlacedValue) -> list[FilePlan]:
    """The files of one captured value: one for each image, mask or track, one for a batch of latents.

    Raises:
        PictureUnsavable, ValueUnsavable: it is not what its slot collects.
    """
    return _PLANS[slot](placed)


# -- images and masks ---------------------------------------------------------------------------------------------------
def _images(placed: PlacedValue) -> list[FilePlan]:
    ref = image_ref(placed)
    if not 1 <= ref.shape[3] <= 4:
        raise PictureUnsavable(index=placed.index, shape=list(ref.shape))
    return [FilePlan(ref, number, ".png", partial(_write_image, number)) for number in range(ref.shape[0])]


def _masks(placed: PlacedValue) -> list[FilePlan]:
    ref = placed.value
    if not isinstance(ref, TensorRef) or len(ref.shape) not in (2, 3):
        raise ValueUnsavable(index=placed.index, slot="masks", expected="tensors of [batch, height, width]")
    count = ref.shape[0] if len(ref.shape) == 3 else 1
    return [FilePlan(ref, number, ".png", partial(_write_mask, number)) for number in range(count)]


def _write_image(number: int, path: Path, images: NDArray[Any], texts: Texts) -> None:
    chunks = PngInfo()
    for keyword, value in texts.items():
        if keyword.isascii() and 0 < len(keyword) < 80:  # what a PNG keyword may be
            chunks.add_text(keyword, json.dumps(value))
    Image.fromarray(to_pixels(images[number])).save(path, format="PNG", compress_level=COMPRESS_LEVEL, pnginfo=chunks)


def _write_mask(number: int, path: Path, masks: NDArray[Any], texts: Texts) -> None:
    _write_image(number, path, masks.reshape((-1, *masks.shape[-2:], 1)), texts)


def to_pixels(image: NDArray[Any]) -> NDArray[np.uint8]:
    """One image as 8 bit, rounded down as ComfyUI's SaveImage does it.

    Args:
        image: [H, W, 1 to 4], any number type, nominally in [0, 1]; what lies outside is clipped, what is no number becomes 0.
    Returns:
        [H, W, 2 to 4] or, with one channel, [H, W].
    """
    scaled = np.clip(255.0 * image, 0, 255)
    if not np.isfinite(scaled.max(initial=0)):
        scaled = np.nan_to_num(scaled)
    pixels = scaled.astype(np.uint8)
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


# -- audio --------------------------------------------------------------------------------------------------------------
def _tracks(placed: PlacedValue) -> list[FilePlan]:
    parts = audio_parts(placed.value)
    if parts is None:
        raise ValueUnsavable(index=placed.index, slot="audio", expected="a waveform of [batch, channels, samples] and its rate")
    ref, rate = parts
    if 4 * ref.shape[1] * ref.shape[2] > _WAV_LIMIT_BYTES or not 1 <= ref.shape[1] < 2**14:
        raise ValueUnsavable(index=placed.index, slot="audio", expected="a track of 4 GiB at most, as WAV holds")
    return [FilePlan(ref, number, ".wav", partial(_write_track, number, rate)) for number in range(ref.shape[0])]


def _write_track(number: int, rate: int, path: Path, waves: NDArray[Any], texts: Texts) -> None:
    """RIFF with floats: the ``fact`` chunk and the size of the extension are what the format asks for beside PCM's fields."""
    wave = waves[number].astype("<f4")
    channels, samples = wave.shape
    kind = struct.pack("<HHIIHHH", _WAV_FLOAT, channels, rate, rate * channels * 4, channels * 4, 32, 0)
    chunks = [(b"fmt ", kind), (b"fact", struct.pack("<I", samples)), (b"data", wave.T.tobytes())]
    body = b"".join(name + struct.pack("<I", len(content)) + content for name, content in chunks)
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)


# -- latents ------------------------------------------------------------------------------------------------------------
def _latents(placed: PlacedValue) -> list[FilePlan]:
    ref = samples_ref(placed.value)
    if ref is None:
        raise ValueUnsavable(index=placed.index, slot="latents", expected="a dict with samples")
    assert isinstance(placed.value, MappingValue)
    others = [name for name in placed.value.entries if name != "samples"]
    return [FilePlan(ref, 0, ".latent", partial(_write_latent, others))]


def _write_latent(others: Sequence[str], path: Path, samples: NDArray[Any], texts: Texts) -> None:
    about = {keyword: json.dumps(value) for keyword, value in texts.items()}
    if others:  # the format has no place for a noise mask or a batch index
        about["left_out"] = json.dumps(others)
    path.write_bytes(latent_file(samples, about))


_PLANS: Mapping[str, Callable[[PlacedValue], list[FilePlan]]] = {
    "images": _images, "audio": _tracks, "latents": _latents, "masks": _masks,
}  # fmt: skip
