"""Frames: what is copied, what is refused on the way in, and that numpy users need no torch."""
from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from distributed_comfy.errors import FrameDtypeUnknown, FrameMalformed, FrameTooLarge
from distributed_comfy.transport.frames import decode_tensor, decode_torch, encode_tensor


def test_a_contiguous_tensor_is_not_copied() -> None:
    image = torch.zeros(1, 4, 4, 3)
    _, payload = encode_tensor(image, limit_bytes=1000)
    assert np.frombuffer(payload, np.uint8).ctypes.data == image.data_ptr()


def test_decoding_shares_the_memory_of_a_writable_frame() -> None:
    frame = bytearray(b"".join(encode_tensor(np.zeros(4, np.float32), limit_bytes=16)))
    decode_tensor(frame, limit_bytes=16)[0] = 1.0
    assert frame[128:132] == np.float32(1.0).tobytes()


def test_a_torch_tensor_from_a_read_only_frame_may_be_written() -> None:
    frame = b"".join(encode_tensor(np.zeros(4, np.float32), limit_bytes=16))
    decode_torch(frame, limit_bytes=16)[0] = 1.0
    assert not decode_tensor(frame, limit_bytes=16).any()


def test_lazily_conjugated_and_tracked_tensors_are_resolved() -> None:
    lazy = torch.tensor([1 + 2j], dtype=torch.complex64).conj()
    assert decode_tensor(b"".join(encode_tensor(lazy, limit_bytes=8)), limit_bytes=8).tolist() == [1 - 2j]
    tracked = torch.ones(2, requires_grad=True)
    assert decode_tensor(b"".join(encode_tensor(tracked, limit_bytes=8)), limit_bytes=8).tolist() == [1.0, 1.0]


def test_a_tensor_over_the_limit_is_refused_with_both_sizes() -> None:
    with pytest.raises(FrameTooLarge) as caught:
        encode_tensor(np.zeros(5, np.float32), limit_bytes=19)
    assert caught.value.fields == {"size_bytes": 20, "limit_bytes": 19}


@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros(2, np.complex128),
        np.array(["text"]),
        np.array([object()]),
        torch.zeros(2, dtype=torch.float8_e4m3fn),
        torch.eye(2).to_sparse(),
    ],
    ids=["complex128", "text", "object", "float8", "sparse"],
)
def test_an_element_type_we_do_not_carry_is_refused(tensor: object) -> None:
    with pytest.raises(FrameDtypeUnknown):
        encode_tensor(tensor, limit_bytes=1000)


def test_more_dimensions_than_numpy_1_has_are_refused() -> None:
    with pytest.raises(FrameMalformed):
        encode_tensor(torch.zeros([1] * 33), limit_bytes=1000)


@pytest.mark.parametrize("module", ["frames", "values", "files", "redis_blobs", "memory_blobs"])
def test_the_module_imports_no_torch(module: str) -> None:
    code = f"import sys, distributed_comfy.transport.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
