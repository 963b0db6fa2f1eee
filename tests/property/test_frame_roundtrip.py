"""decode(encode(t)) == t, bit for bit, for every element type, shape and layout."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distributed_comfy.transport.frames import DTYPES, decode_tensor, decode_torch, encode_tensor, frame_size_bytes

LIMIT_BYTES = 2**20
NUMPY_DTYPES = [dtype for dtype in DTYPES if dtype != "bfloat16"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)


@st.composite
def arrays(draw: st.DrawFn, dtype: str | None = None) -> np.ndarray[Any, Any]:
    """Arrays made of arbitrary bytes, so that NaN payloads, infinities and -0.0 all occur; half of them not contiguous."""
    name = dtype or draw(st.sampled_from(NUMPY_DTYPES))
    shape = draw(SHAPES)
    count = int(np.prod(shape)) * np.dtype(name).itemsize
    raw = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), np.uint8)
    if name == "bool":
        raw = raw & 1
    array = raw.view(name).reshape(shape)
    return np.array(array).T if draw(st.booleans()) else array


def joined(tensor: Any) -> bytes:
    return b"".join(encode_tensor(tensor, limit_bytes=LIMIT_BYTES))


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@given(arrays())
def test_numpy_arrays_come_back_bit_for_bit(array: np.ndarray[Any, Any]) -> None:
    decoded = decode_tensor(joined(array), limit_bytes=LIMIT_BYTES)
    assert (decoded.dtype, decoded.shape, decoded.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(arrays())
def test_torch_tensors_come_back_bit_for_bit(array: np.ndarray[Any, Any]) -> None:
    tensor = torch.from_numpy(array.copy(order="K"))
    decoded = decode_torch(joined(tensor), limit_bytes=LIMIT_BYTES)
    assert (decoded.dtype, decoded.shape, raw_bytes(decoded)) == (tensor.dtype, tensor.shape, raw_bytes(tensor))


@given(arrays("int16"))
def test_bfloat16_comes_back_bit_for_bit_in_torch_and_as_the_same_float32_in_numpy(bits: np.ndarray[Any, Any]) -> None:
    tensor = torch.from_numpy(bits.copy(order="K")).view(torch.bfloat16)
    frame = joined(tensor)
    decoded = decode_torch(frame, limit_bytes=LIMIT_BYTES)
    assert (decoded.dtype, decoded.shape, raw_bytes(decoded)) == (torch.bfloat16, tensor.shape, raw_bytes(tensor))
    widened = decode_tensor(frame, limit_bytes=LIMIT_BYTES)
    assert widened.dtype == np.float32
    np.testing.assert_array_equal(widened, tensor.float().numpy())
    assert widened.astype("<f4").view("<u4").tobytes() == (bits.astype(np.uint16).astype("<u4") << 16).tobytes()


@given(arrays(), st.integers(0, 70))
def test_a_frame_is_read_the_same_wherever_it_lies_in_memory(array: np.ndarray[Any, Any], shift: int) -> None:
    buffer = memoryview(bytearray(shift) + joined(array))[shift:]
    assert decode_tensor(buffer, limit_bytes=LIMIT_BYTES).tobytes() == array.tobytes()
    assert decode_torch(buffer, limit_bytes=LIMIT_BYTES).numpy().tobytes() == array.tobytes()


@given(arrays())
def test_the_length_is_known_before_there_is_a_tensor(array: np.ndarray[Any, Any]) -> None:
    assert frame_size_bytes(array.dtype.name, array.shape) == len(joined(array))


@given(arrays())
def test_byte_order_makes_no_difference(array: np.ndarray[Any, Any]) -> None:
    assert joined(array.astype(array.dtype.newbyteorder(">"))) == joined(array)
