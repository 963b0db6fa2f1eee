"""Frames out of a fuzzer: whatever stands in one, it is read as what its header says or refused by name, alike by both readers.

`make fuzz` runs the same for minutes.  What it finds becomes an `example` here.
"""
from __future__ import annotations

import struct
from typing import Any, get_args

import msgpack
import numpy as np
import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from distributed_comfy.errors import FrameError
from distributed_comfy.transport.encodings import Encoding
from distributed_comfy.transport.frames import DTYPES, decode_tensor, decode_torch, encode_tensor, read_header

ENCODINGS = get_args(Encoding)
LIMIT_BYTES = 4096
PREAMBLE = struct.Struct("<4sHHII")
ODD_NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 1.5, True, None, "1", b"1"])
NUMBERS = st.integers(0, 40) | ODD_NUMBERS
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.binary(max_size=12)
ANYTHING = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4))
FIELDS = {
    "dtype": st.sampled_from([*DTYPES, "float", "object", "<f4", ""]) | ANYTHING,
    "shape": st.lists(NUMBERS, max_size=5) | st.lists(st.just(1), min_size=30, max_size=34) | ANYTHING,
    "size_bytes": NUMBERS | ANYTHING,
    "checksum_alg": st.sampled_from(["xxh3_64", "crc32"]) | ANYTHING,
    "checksum": st.binary(min_size=7, max_size=9) | ANYTHING,
    "encoding": st.sampled_from(ENCODINGS) | ANYTHING,
    "stored_bytes": NUMBERS | ANYTHING,
}


@st.composite
def honest_frames(draw: st.DrawFn) -> bytes:
    """Frames as workers write them."""
    dtype = draw(st.sampled_from(["float32", "float16", "uint8", "bool", "int64"]))
    shape = draw(st.lists(st.integers(0, 5), max_size=3).map(tuple) | st.sampled_from([(1, 8, 8, 3), (2, 4, 4, 4)]))
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 2, shape).astype(dtype)
    encoding: Any = draw(st.sampled_from(ENCODINGS))
    return b"".join(bytes(part) for part in encode_tensor(array, limit_bytes=LIMIT_BYTES, encoding=encoding))


@st.composite
def frames_that_lie(draw: st.DrawFn) -> bytes:
    """Frames with other words in the header, whose own checksums are right again, perhaps that of the payload too."""
    frame = draw(honest_frames())
    magic, version, reserved, length, _ = PREAMBLE.unpack_from(frame)
    offset = -(-(PREAMBLE.size + length) // 64) * 64
    header, payload = msgpack.unpackb(frame[PREAMBLE.size : PREAMBLE.size + length]), frame[offset:]
    payload = draw(st.just(payload) | st.just(payload[:-1]) | st.binary(max_size=80) | st.just(payload + b"\0"))
    if draw(st.booleans()):
        header["checksum"] = xxhash.xxh3_64_digest(payload)
    if draw(st.booleans()) and "stored_bytes" in header:
        header["stored_bytes"] = len(payload)
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=2, unique=True)):
        header[name] = draw(FIELDS[name])
    packed = draw(st.just(msgpack.packb(header)) | ANYTHING.map(msgpack.packb) | st.binary(max_size=60))
    version = draw(st.just(version) | st.integers(0, 3))
    head = PREAMBLE.pack(magic, version, reserved, len(packed), xxhash.xxh32_intdigest(packed)) + packed
    return head.ljust(-(-len(head) // 64) * 64, b"\0") + payload


@st.composite
def damaged_frames(draw: st.DrawFn) -> bytes:
    """Frames in which some bytes are others, missing or too many."""
    frame = bytearray(draw(honest_frames()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frame)))
        frame[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(frame)


def outcome(read: Any, frame: bytes) -> Any:
    """What a reader makes of it: dtype and shape, or the class of its refusal."""
    try:
        found = read(frame, limit_bytes=LIMIT_BYTES)
    except FrameError as error:
        assert error.code in str(type(error).code) and str(error)
        return type(error)
    return tuple(found.shape)


@given(honest_frames() | frames_that_lie() | damaged_frames() | st.binary(max_size=200))
@example(b"DCTF" + bytes(12))
def test_a_frame_is_what_it_says_or_is_refused_and_both_readers_agree(frame: bytes) -> None:
    pytest.importorskip("torch")
    by_numpy, by_torch = outcome(decode_tensor, frame), outcome(decode_torch, frame)
    assert by_numpy == by_torch
    if isinstance(by_numpy, tuple):
        header = read_header(frame, limit_bytes=LIMIT_BYTES)
        assert by_numpy == header.shape and header.size_bytes <= LIMIT_BYTES
