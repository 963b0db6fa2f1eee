"""Encoded frames: what is bit for bit stays so, what loses something loses no more than it says, and 8 bits are those of a saved file."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distributed_comfy.collector.file_formats import to_pixels
from distributed_comfy.transport.encodings import FLOAT16_ABSOLUTE_ERROR, FLOAT16_RELATIVE_ERROR, Encoding
from distributed_comfy.transport.frames import DTYPES, decode_tensor, decode_torch, encode_tensor, read_header

LIMIT_BYTES = 2**22
LOSSY: list[Encoding] = ["float16", "uint8", "jpeg"]
PICTURES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 4]))
ODD = (float("inf"), float("-inf"), -0.0, 1e-45, -1e-45, 65504.0, 65520.0, 3.4e38, 1.0, 0.0, 1 + 2**-23, 1 - 2**-24, 254.5 / 255)
"""Numbers that rounding, clipping and casting treat in their own ways."""


def joined(tensor: Any, encoding: Encoding) -> bytes:
    return b"".join(encode_tensor(tensor, limit_bytes=LIMIT_BYTES, encoding=encoding))


def through(tensor: Any, encoding: Encoding) -> np.ndarray[Any, Any]:
    return decode_tensor(joined(tensor, encoding), limit_bytes=LIMIT_BYTES)


def used(tensor: Any, encoding: Encoding) -> str:
    return read_header(joined(tensor, encoding), limit_bytes=LIMIT_BYTES).encoding


def saved(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The pixels that ComfyUI's SaveImage writes."""
    return np.clip(255.0 * images, 0, 255).astype(np.uint8)


@st.composite
def floats(draw: st.DrawFn, shapes: Any = PICTURES) -> np.ndarray[Any, Any]:
    """Pictures of any float32 but NaN, most of them near [0, 1]."""
    near = st.floats(-0.5, 1.5, width=32)
    numbers = st.one_of(near, near, st.floats(width=32, allow_nan=False), st.sampled_from(ODD))
    return np.array(draw(hnp.arrays(np.float32, draw(shapes), elements=numbers)))


@st.composite
def raw_arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Arrays of any element type made of few different bytes, so that they compress."""
    name = draw(st.sampled_from([dtype for dtype in DTYPES if dtype != "bfloat16"]))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    unit = draw(st.binary(min_size=1, max_size=12))
    count = int(np.prod(shape)) * np.dtype(name).itemsize
    raw = np.frombuffer((unit * (count // len(unit) + 1))[:count], np.uint8)
    return np.array((raw & 1 if name == "bool" else raw).view(name).reshape(shape))


# -- bit for bit
@given(raw_arrays())
def test_zstd_gives_every_element_type_back_bit_for_bit(array: np.ndarray[Any, Any]) -> None:
    decoded = through(array, "zstd")
    assert (decoded.dtype, decoded.shape, decoded.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("dtype", DTYPES)
def test_zstd_shortens_what_repeats_whatever_its_type(dtype: str) -> None:
    tensor = torch.ones((64, 64), dtype=getattr(torch, dtype))
    frame = joined(tensor, "zstd")
    assert len(frame) < 256 < tensor.numel()
    assert torch.equal(decode_torch(frame, limit_bytes=LIMIT_BYTES), tensor)


@given(raw_arrays(), st.sampled_from(LOSSY))
def test_what_no_encoding_suits_travels_plain_and_bit_for_bit(array: np.ndarray[Any, Any], encoding: Encoding) -> None:
    if array.dtype != np.float32:
        assert joined(array, encoding) == joined(array, "plain")


@given(floats(), st.sampled_from([torch.bfloat16, torch.float16]), st.sampled_from(LOSSY))
def test_half_precision_tensors_stay_as_they_are(images: np.ndarray[Any, Any], dtype: Any, encoding: Encoding) -> None:
    tensor = torch.from_numpy(images).to(dtype)
    assert joined(tensor, encoding) == joined(tensor, "plain")


@given(floats(), st.sampled_from(LOSSY), st.randoms())
def test_a_tensor_with_a_nan_travels_plain(images: np.ndarray[Any, Any], encoding: Encoding, random: Any) -> None:
    images.reshape(-1)[random.randrange(images.size)] = np.nan
    assert joined(images, encoding) == joined(images, "plain")


# -- 8 bits
def test_every_level_comes_back_as_itself() -> None:
    """From the level through the frame to what SaveImage, the master and torch make of it."""
    levels = np.arange(256, dtype=np.uint8)
    images = np.repeat(levels.astype(np.float32) / np.float32(255), 3).reshape(1, 16, 16, 3)
    decoded = through(images, "uint8")
    assert used(images, "uint8") == "uint8"
    assert decoded.tobytes() == images.tobytes()
    assert np.array_equal(saved(decoded).reshape(-1, 3)[:, 0], levels)
    assert np.array_equal(to_pixels(decoded[0]).reshape(-1, 3)[:, 1], levels)
    assert np.array_equal((torch.from_numpy(decoded.copy()) * 255).clamp(0, 255).to(torch.uint8).numpy(), saved(decoded))


def test_every_number_beside_a_level_keeps_its_level() -> None:
    """Where rounding could tip: the float32 numbers next to each k/255, both ways."""
    edges = np.arange(257, dtype=np.float32) / np.float32(255)
    near = [edges]
    for towards in (np.float32(-9), np.float32(9)):
        stepped = edges
        for _ in range(4):
            stepped = np.nextafter(stepped, towards)
            near.append(stepped)
    images = np.concatenate(near).reshape(1, 9, 257, 1)
    assert used(images, "uint8") == "uint8"
    assert np.array_equal(saved(through(images, "uint8")), saved(images))


@given(floats())
def test_the_saved_pixels_are_those_of_the_exact_images(images: np.ndarray[Any, Any]) -> None:
    decoded = through(images, "uint8")
    assert decoded.dtype == np.float32 and decoded.shape == images.shape
    assert np.array_equal(saved(decoded), saved(images))
    assert all(np.array_equal(to_pixels(one), to_pixels(other)) for one, other in zip(decoded, images, strict=True))


@given(floats())
def test_a_second_journey_changes_nothing(images: np.ndarray[Any, Any]) -> None:
    once = through(images, "uint8")
    if used(images, "uint8") == "uint8":
        assert through(once, "uint8").tobytes() == once.tobytes()


@given(floats(st.one_of(hnp.array_shapes(min_dims=0, max_dims=3, max_side=40))))
def test_eight_bits_of_any_shape(array: np.ndarray[Any, Any]) -> None:
    assert np.array_equal(saved(through(array, "uint8")), saved(array))


# -- what loses bits
@given(floats(hnp.array_shapes(min_dims=0, max_dims=5, max_side=8)))
def test_float16_is_as_near_as_it_says_or_exact(array: np.ndarray[Any, Any]) -> None:
    decoded = through(array, "float16")
    if used(array, "float16") == "plain":
        assert decoded.tobytes() == array.tobytes()
        return
    bound = np.maximum(np.abs(array.astype(np.float64)) * FLOAT16_RELATIVE_ERROR, FLOAT16_ABSOLUTE_ERROR)
    assert (np.abs(decoded.astype(np.float64) - array) <= bound).all()
    assert through(decoded, "float16").tobytes() == decoded.tobytes()


@given(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_a_smooth_picture_is_hardly_changed_by_jpeg(count: int, channels: int, seed: int) -> None:
    corners = np.random.default_rng(seed).random((count, 2, 2, channels))
    ramp = np.linspace(0, 1, 32)
    weights = np.stack([1 - ramp, ramp])
    images = np.einsum("bijc,ih,jw->bhwc", corners, weights, weights).astype(np.float32)
    decoded = through(images, "jpeg")
    assert used(images, "jpeg") == "jpeg" and decoded.shape == images.shape
    assert np.abs(decoded - images).max() <= 8 / 255


@given(floats(st.tuples(st.integers(1, 2), st.integers(8, 12), st.integers(8, 12), st.just(4))))
def test_transparent_pictures_keep_all_8_bits_under_jpeg(images: np.ndarray[Any, Any]) -> None:
    assert used(images, "jpeg") in ("uint8", "plain")
    assert np.array_equal(saved(through(images, "jpeg")), saved(images))


@given(floats(), st.sampled_from([*LOSSY, "zstd"]))
def test_torch_and_numpy_read_the_same(images: np.ndarray[Any, Any], encoding: Encoding) -> None:
    frame = joined(images, encoding)
    read = decode_torch(frame, limit_bytes=LIMIT_BYTES)
    assert read.numpy().tobytes() == decode_tensor(frame, limit_bytes=LIMIT_BYTES).tobytes()
    assert joined(torch.from_numpy(images), encoding) == frame
