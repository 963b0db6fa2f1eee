"""Encodings: how the payload of a frame lies in fewer bytes than its elements take, and how it becomes elements again.

::

    name      elements                     what the payload is
    zstd      any                          planes (below), compressed with Zstandard; bit for bit
    float16   float32 -> float16           planes, compressed with deflate; rounded to nearest, see `FLOAT16_RELATIVE_ERROR`
    uint8     float32 -> 0 to 255          differences (below), compressed with deflate; what an 8-bit PNG of ComfyUI keeps
    jpeg      float32 [B, H, W, 1 or 3]    B lengths (4 bytes each, little-endian), then as many JPEG files of the `uint8` levels

*Planes*: the first byte of every element, then the second of every element, and so on, because sign and exponent of neighbours are alike
while their last bits are noise.  *Differences*: each level less its neighbour at its left, then each row of these less the row above it,
modulo 256.  Deflate is raw (no header), and uses Huffman codes alone: for such bytes it is as small as with its search for repetitions,
and twice as fast.

An encoding that does not suit a tensor (another element type, a NaN, nothing saved) gives None, and the frame is a plain one; what does
not suit ``jpeg`` (transparency, more than 2^26 pixels) becomes ``uint8``.  All lengths are known from a frame's header before anything
is decoded, and decoding stops at them.
"""
from __future__ import annotations

import functools
import io
import logging
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distributed_comfy.errors import FrameEncodingMissing, FrameEncodingUnknown, FrameMalformed, FrameTooLarge

log = logging.getLogger(__name__)

Encoding = Literal["plain", "zstd", "float16", "uint8", "jpeg"]
"""``plain``: the elements themselves."""

DECODED_LIMIT_BYTES = 2**33
"""Larger tensors travel plain, so a small frame can never claim more than this."""
FLOAT16_RELATIVE_ERROR = 2.0**-11
"""Largest error of ``float16`` over the number, from 2^-14 up to 65 504; below that at most `FLOAT16_ABSOLUTE_ERROR`."""
FLOAT16_ABSOLUTE_ERROR = 2.0**-25
JPEG_QUALITY = 95
"""With colours at full resolution (4:4:4)."""

_ZSTD_LEVEL = 1
_ZSTD_WINDOW_BYTES = 2**27
_JPEG_SIDE, _JPEG_PIXELS = 65_500, 2**26
"""What the format takes, and what Pillow reads without a warning."""
_PIXEL_MODES = {1: "L", 3: "RGB"}
_LEVELS: NDArray[np.float32] = np.arange(256, dtype=np.float32) / np.float32(255)
"""Level -> what it stands for, as ComfyUI's LoadImage reads an 8-bit file; multiplied by 255 in float32 each gives its level again."""

Bytes = NDArray[np.uint8]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Codec:
    """Both directions of one encoding."""

    encode: Callable[[NDArray[Any], Shape], bytes | None]
    """Flat elements and their shape -> payload, None where it does not suit them."""
    decode: Callable[[memoryview, str, Shape, int], Bytes]
    """Payload, element type, shape and decoded length -> the elements' bytes."""
    only_float32: bool = True


def encode_payload(encoding: Encoding, payload: memoryview, dtype: str, shape: Shape) -> tuple[Encoding, bytes] | None:
    """A payload in another encoding, and which it is; None where none suits it, or saves anything.

    Args:
        encoding: the one that is wanted; where the package that ``zstd`` needs is not there, the answer is None, and what does not suit
            ``jpeg`` becomes ``uint8``.
        payload: the elements in C order, little-endian.
        dtype: their type, by the name that frames use.
        shape: of the tensor.
    """
    codec = _CODECS.get(encoding)
    if codec is None or not 0 < len(payload) <= DECODED_LIMIT_BYTES or (codec.only_float32 and dtype != "float32"):
        return None
    raw = np.frombuffer(payload, np.uint8)
    elements = raw.view("<f4") if codec.only_float32 else raw.reshape(-1, len(payload) // math.prod(shape))
    encoded = codec.encode(elements, shape)
    if encoded is not None and len(encoded) < len(payload):
        return encoding, encoded
    return encode_payload("uint8", payload, dtype, shape) if encoding == "jpeg" else None


def decode_payload(encoding: str, encoded: memoryview, dtype: str, shape: Shape, size_bytes: int) -> Bytes:
    """The bytes that `encode_payload` took (or for what loses something, those of the numbers that became of them).

    Args:
        encoded: exactly the payload.
        size_bytes: length of the result; fits type and shape.
    Raises:
        FrameEncodingUnknown: it is none of ours.
        FrameEncodingMissing: a package for it is not installed here.
        FrameTooLarge: it claims more than any encoded frame has.
        FrameMalformed: it does not decode to that.
    """
    codec = _CODECS.get(encoding)
    if codec is None:
        raise FrameEncodingUnknown(encoding=encoding, known=list(_CODECS))
    if codec.only_float32 and dtype != "float32":
        raise FrameMalformed(reason=f"its encoding {encoding} is for float32, not {dtype}")
    if size_bytes > DECODED_LIMIT_BYTES:
        raise FrameTooLarge(size_bytes=size_bytes, limit_bytes=DECODED_LIMIT_BYTES)
    return codec.decode(encoded, dtype, shape, size_bytes)


def zstandard() -> ModuleType:
    """The package behind ``zstd``, which is optional.

    Raises:
        FrameEncodingMissing: it is not installed for this interpreter.
    """
    try:
        import zstandard as package
    except ImportError as error:
        raise FrameEncodingMissing(encoding="zstd", package="zstandard", reason=str(error)) from error
    return package


# -- zstd ---------------------------------------------------------------------------------------------------------------
def _to_zstd(elements: NDArray[Any], shape: Shape) -> bytes | None:
    try:
        package = zstandard()
    except FrameEncodingMissing as error:
        _tell_once(str(error))
        return None
    compressed: bytes = package.ZstdCompressor(level=_ZSTD_LEVEL).compress(_planes(elements).data)
    return compressed


@functools.cache
def _tell_once(why: str) -> None:
    log.warning("tensors travel as they are: %s", why)


def _from_zstd(encoded: memoryview, dtype: str, shape: Shape, size_bytes: int) -> Bytes:
    package = zstandard()
    try:
        # Asked first: the decompressor would allocate whatever the data claims.
        if package.get_frame_parameters(encoded).content_size != size_bytes:
            raise FrameMalformed(reason="its compressed bytes are of another length than its tensor")
        decompressor = package.ZstdDecompressor(max_window_size=max(_ZSTD_WINDOW_BYTES, size_bytes))
        planes = decompressor.decompress(encoded, max_output_size=size_bytes, allow_extra_data=False)
    except package.ZstdError as error:
        raise FrameMalformed(reason=f"its bytes are not Zstandard: {error}") from error
    return _from_planes(planes, size_bytes // math.prod(shape))


# -- float16 ------------------------------------------------------------------------------------------------------------
def _to_float16(elements: NDArray[Any], shape: Shape) -> bytes | None:
    with np.errstate(over="ignore"):
        halves = elements.astype("<f2")
    if not np.isfinite(halves).all():  # also what was finite and is too large
        return None
    return _deflated([_planes(halves.view(np.uint8).reshape(-1, 2))])


def _from_float16(encoded: memoryview, dtype: str, shape: Shape, size_bytes: int) -> Bytes:
    halves = _from_planes(_inflated(encoded, size_bytes // 2), 2).view("<f2")
    return halves.astype("<f4").view(np.uint8)


# -- uint8 --------------------------------------------------------------------------------------------------------------
def levels(elements: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Numbers as levels, rounded down after clipping as ComfyUI's SaveImage does it; None where one is NaN, whose level nobody defined."""
    with np.errstate(over="ignore"):
        scaled = elements * np.float32(255)
    np.clip(scaled, 0, 255, out=scaled)
    if np.isnan(scaled.max(initial=0)):
        return None
    found: NDArray[np.uint8] = scaled.astype(np.uint8)
    return found


def _to_uint8(elements: NDArray[Any], shape: Shape) -> bytes | None:
    found = _level_pictures(elements, shape)
    return None if found is None else _deflated([_differences(picture) for picture in found])


def _from_uint8(encoded: memoryview, dtype: str, shape: Shape, size_bytes: int) -> Bytes:
    pictures = np.frombuffer(_inflated(encoded, size_bytes // 4), np.uint8).reshape(_pictures(shape))
    decoded = np.empty(pictures.shape, "<f4")
    for number, picture in enumerate(pictures):
        rows = np.cumsum(picture, axis=0, dtype=np.uint8)
        decoded[number] = _LEVELS[np.cumsum(rows, axis=1, dtype=np.uint8)]
    return decoded.reshape(-1).view(np.uint8)


def _level_pictures(elements: NDArray[Any], shape: Shape) -> list[NDArray[np.uint8]] | None:
    """The levels of a tensor, picture by picture, so that what lies between is small."""
    found: list[NDArray[np.uint8]] = []
    for picture in elements.reshape(_pictures(shape)):
        level = levels(picture)
        if level is None:
            return None
        found.append(level)
    return found


def _differences(picture: NDArray[np.uint8]) -> Bytes:
    rows = picture.copy()
    rows[:, 1:] -= picture[:, :-1]
    both = rows.copy()
    both[1:] -= rows[:-1]
    flat: Bytes = both.reshape(-1)
    return flat


def _pictures(shape: Shape) -> tuple[int, int, int, int]:
    """Pictures, rows, columns and numbers per pixel; what is no batch of pictures is one row."""
    if len(shape) in (3, 4):
        count, height, width, *numbers = shape
        return count, height, width, math.prod(numbers)
    return 1, 1, math.prod(shape), 1


# -- jpeg ---------------------------------------------------------------------------------------------------------------
def _to_jpeg(elements: NDArray[Any], shape: Shape) -> bytes | None:
    if len(shape) != 4 or shape[3] not in _PIXEL_MODES or max(shape[1:3]) > _JPEG_SIDE or shape[1] * shape[2] > _JPEG_PIXELS:
        return None
    found = _level_pictures(elements, shape)
    if found is None:
        return None
    files = []
    for picture in found:
        file = io.BytesIO()
        pixels = picture[:, :, 0] if shape[3] == 1 else picture
        Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        files.append(file.getvalue())
    return struct.pack(f"<{len(files)}I", *map(len, files)) + b"".join(files)


def _from_jpeg(encoded: memoryview, dtype: str, shape: Shape, size_bytes: int) -> Bytes:
    if len(shape) != 4 or shape[3] not in _PIXEL_MODES:
        raise FrameMalformed(reason=f"JPEG has no tensor of shape {list(shape)}")
    lengths_end = 4 * shape[0]
    if len(encoded) < lengths_end:
        raise FrameMalformed(reason="its JPEG files have no lengths")
    lengths = struct.unpack(f"<{shape[0]}I", encoded[:lengths_end])
    if lengths_end + sum(lengths) != len(encoded):
        raise FrameMalformed(reason="its JPEG files are of other lengths than they say")
    decoded, at = np.empty(shape, "<f4"), lengths_end
    for number, length in enumerate(lengths):
        pixels = _read_jpeg(bytes(encoded[at : at + length]), shape)
        decoded[number] = _LEVELS[pixels.reshape(shape[1:])]
        at += length
    return decoded.reshape(-1).view(np.uint8)


def _read_jpeg(file: bytes, shape: Shape) -> NDArray[np.uint8]:
    """The pixels of one file, whose size is compared before they are decoded."""
    try:
        with Image.open(io.BytesIO(file), formats=["JPEG"]) as picture:
            if picture.size != (shape[2], shape[1]) or picture.mode != _PIXEL_MODES[shape[3]]:
                raise FrameMalformed(reason=f"a JPEG file is {picture.mode} of {picture.size}, its tensor is {list(shape)}")
            return np.asarray(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FrameMalformed(reason=f"a JPEG file cannot be read: {error}") from error


# -- parts --------------------------------------------------------------------------------------------------------------
def _planes(elements: Bytes) -> Bytes:
    """[N, width] bytes -> first bytes, second bytes..."""
    return np.ascontiguousarray(elements.T).reshape(-1)


def _from_planes(planes: bytes, width: int) -> Bytes:
    return np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(width, -1).T).reshape(-1)


def _deflated(parts: Sequence[Bytes]) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
    return b"".join([*(compressor.compress(part.data) for part in parts), compressor.flush()])


def _inflated(encoded: memoryview, size_bytes: int) -> bytes:
    """Exactly so many bytes; more are never made."""
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = decompressor.decompress(encoded, max(1, size_bytes))
        if len(content) == size_bytes and not decompressor.eof:  # what is left may only be the mark of the end
            content += decompressor.decompress(decompressor.unconsumed_tail, 1)
    except zlib.error as error:
        raise FrameMalformed(reason=f"its bytes are not deflate: {error}") from error
    if len(content) != size_bytes or not decompressor.eof or decompressor.unused_data or decompressor.unconsumed_tail:
        raise FrameMalformed(reason="its compressed bytes are of another length than its tensor")
    return content


_CODECS: dict[str, _Codec] = {
    "zstd": _Codec(_to_zstd, _from_zstd, only_float32=False),
    "float16": _Codec(_to_float16, _from_float16),
    "uint8": _Codec(_to_uint8, _from_uint8),
    "jpeg": _Codec(_to_jpeg, _from_jpeg),
}
