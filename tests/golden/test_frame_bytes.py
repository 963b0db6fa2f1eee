"""The exact bytes of frames: a change here is a new frame version."""
from __future__ import annotations

import struct
from typing import Any

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
_VERSION_2 = "444354460200" "0000"  # DCTF, version 2, reserved
_CHECKSUM_KEYS = "ac636865636b73756d5f616c67a7787868335f3634" "a8636865636b73756dc408"  # checksum_alg: xxh3_64, checksum: 8 bytes
UINT8 = bytes.fromhex(
    _VERSION_2 + "6b000000cdc6f92a" "87"  # header of 107 bytes, its xxh32, a map of seven
    "a56474797065a7666c6f61743332" "a57368617065" "9401040203"  # dtype: float32, shape: [1, 4, 2, 3]
    "aa73697a655f6279746573" "60"  # size_bytes: 96, of the decoded elements
    + _CHECKSUM_KEYS + "ef2686c7f9d963dc"  # of the payload as it follows
    "a8656e636f64696e67" "a575696e7438"  # encoding: uint8
    "ac73746f7265645f6279746573" "1a"  # stored_bytes: 26
    + "00" * 5  # up to 128
    + "63e0165354547472726260607076766660607072726260600400"  # deflate of the differences
)
FLOAT16 = bytes.fromhex(
    _VERSION_2 + "6b00000038d5163f" "87"
    "a56474797065a7666c6f61743332" "a57368617065" "9128" "aa73697a655f6279746573" "cca0"  # float32, [40], 160
    + _CHECKSUM_KEYS + "412ffdda62465eed" "a8656e636f64696e67" "a7666c6f61743136" "ac73746f7265645f6279746573" "1e"  # float16, 30
    + "00" * 5
    + "05c181000000008020a3b1f247b80000000000aaaaaaaaaaaaaaaaaaaa06"  # deflate of 40 times 66, 40 times 2e
)
ZSTD = bytes.fromhex(
    _VERSION_2 + "670000000193ad12" "87"
    "a56474797065a5696e743332" "a57368617065" "9140" "aa73697a655f6279746573" "cd0100"  # int32, [64], 256
    + _CHECKSUM_KEYS + "de05b301bb191e1e" "a8656e636f64696e67" "a47a737464" "ac73746f7265645f6279746573" "16"  # zstd, 22
    + "00" * 9
    + "28b52ffd6000006500001807070002003c408949000b"  # 64 times 07, 192 times 00
)
ENCODED = {
    "uint8": (UINT8, (np.arange(24) * 255 // 23).reshape(1, 4, 2, 3).astype(np.float32) / np.float32(255)),
    "float16": (FLOAT16, np.full(40, np.float16(0.1), np.float32)),
    "zstd": (ZSTD, np.full(64, 7, np.int32)),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_an_encoded_frame_of_these_bytes_is_read_and_written_again(encoding: Any) -> None:
    frame, expected = ENCODED[encoding]
    decoded = decode_tensor(frame, limit_bytes=expected.nbytes)
    assert (decoded.dtype, decoded.shape, decoded.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
    head, _ = encode_tensor(expected, limit_bytes=expected.nbytes, encoding=encoding)
    # What a compressor makes of the same bytes depends on its version; of the header only checksums and length do.
    assert len(head) == 128 and head[:8] == frame[:8] and head[16:67] == frame[16:67]
    assert head[head.index(b"encoding") :].startswith(frame[frame.index(b"encoding") : frame.index(b"stored_bytes") + 12])


def test_jpeg_files_lie_one_after_the_other_behind_their_lengths() -> None:
    images = np.stack([np.full((8, 8, 3), level, np.float32) for level in (0.25, 0.75)])
    _, payload = encode_tensor(images, limit_bytes=images.nbytes, encoding="jpeg")
    first, second = struct.unpack("<2I", payload[:8])
    assert len(payload) == 8 + first + second
    assert payload[8:10] == payload[8 + first : 10 + first] == b"\xff\xd8"  # how every JPEG file begins


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
