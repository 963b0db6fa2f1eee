"""The exact bytes of frames: a change here is a new frame version."""
from __future__ import annotations

import numpy as np
import pytest

from distributed_comfy.transport.frames import DTYPES, decode_tensor, encode_tensor, frame_size_bytes

FLOAT32 = bytes.fromhex(
    "44435446"  # DCTF
    "0100"  # version 1
    "0000"  # reserved
    "4c000000"  # header of 76 bytes
    "d0050d88"  # xxh32 of the header
    "85"  # a map of five
    "a56474797065" "a7666c6f61743332"  # dtype: float32
    "a57368617065" "920102"  # shape: [1, 2]
    "aa73697a655f6279746573" "08"  # size_bytes: 8
    "ac636865636b73756d5f616c67" "a7787868335f3634"  # checksum_alg: xxh3_64
    "a8636865636b73756d" "c408f4a9b49fabaf6033"  # checksum
    + "00" * 36  # up to 128
    + "0000803f" "00000080"  # 1.0, -0.0
)
EMPTY_BOOL = bytes.fromhex(
    "4443544601000000480000006e402e70"  # header of 72 bytes
    "85a56474797065a4626f6f6ca573686170659100aa73697a655f627974657300"  # dtype: bool, shape: [0], size_bytes: 0
    "ac636865636b73756d5f616c67a7787868335f3634"  # checksum_alg: xxh3_64
    "a8636865636b73756dc4082d06800538d394c2"  # checksum
    + "00" * 40
)


def test_a_float32_frame_has_these_bytes() -> None:
    assert b"".join(encode_tensor(np.array([[1.0, -0.0]], np.float32), limit_bytes=8)) == FLOAT32


def test_the_frame_of_an_empty_tensor_is_a_header_alone() -> None:
    assert b"".join(encode_tensor(np.empty(0, np.bool_), limit_bytes=0)) == EMPTY_BOOL


def test_the_stored_bytes_decode_to_the_same_elements() -> None:
    decoded = decode_tensor(FLOAT32, limit_bytes=8)
    assert decoded.shape == (1, 2)
    assert decoded.tobytes() == FLOAT32[-8:]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_payload_begins_at_a_multiple_of_64_and_the_length_is_known_ahead(dtype: str) -> None:
    stored = "uint16" if dtype == "bfloat16" else dtype
    size_bytes = 6 * np.dtype(stored).itemsize
    assert frame_size_bytes(dtype, (2, 3)) == 128 + size_bytes
    if dtype != "bfloat16":
        assert sum(map(len, encode_tensor(np.ones((2, 3), stored), limit_bytes=size_bytes))) == 128 + size_bytes
