"""Frames that are cut off, damaged or lie; each is refused by name before memory is taken for its payload."""
from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
import xxhash

from distributed_comfy.errors import (
    FrameChecksumWrong,
    FrameDtypeUnknown,
    FrameError,
    FrameMalformed,
    FrameTooLarge,
    FrameTruncated,
    FrameVersionUnknown,
)
from distributed_comfy.transport.frames import decode_tensor, decode_torch, encode_tensor

PAYLOAD = np.arange(6, dtype=np.float32)
HONEST: dict[str, Any] = {
    "dtype": "float32",
    "shape": [2, 3],
    "size_bytes": 24,
    "checksum_alg": "xxh3_64",
    "checksum": xxhash.xxh3_64_digest(PAYLOAD.tobytes()),
}


def frame(header: object = HONEST, payload: bytes = PAYLOAD.tobytes(), **preamble: Any) -> bytes:
    """A frame whose outer parts are right unless given, around any header."""
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    fields = {"magic": b"DCTF", "version": 1, "reserved": 0, "length": len(packed), "checksum": xxhash.xxh32_intdigest(packed), **preamble}
    head = struct.pack("<4sHHII", *fields.values()) + packed
    return head.ljust(-(-len(head) // 64) * 64, b"\0") + payload


def lying(**changes: Any) -> bytes:
    return frame({**HONEST, **changes})


def without(key: str) -> bytes:
    return frame({name: value for name, value in HONEST.items() if name != key})


GOOD = frame()

HOSTILE: dict[str, tuple[bytes, type[FrameError]]] = {
    "nothing": (b"", FrameTruncated),
    "cut in the preamble": (GOOD[:15], FrameTruncated),
    "cut in the header": (GOOD[:40], FrameTruncated),
    "cut in the padding": (GOOD[:120], FrameTruncated),
    "cut in the payload": (GOOD[:-1], FrameTruncated),
    "no payload": (GOOD[:128], FrameTruncated),
    "a byte too many": (GOOD + b"\0", FrameMalformed),
    "something in the padding": (GOOD[:127] + b"\1" + GOOD[128:], FrameMalformed),
    "not a frame": (b"\x89PNG\r\n\x1a\n" + bytes(200), FrameMalformed),
    "a version from the future": (frame(version=2), FrameVersionUnknown),
    "version 0": (frame(version=0), FrameVersionUnknown),
    "reserved bits set": (frame(reserved=1), FrameMalformed),
    "a header of 4 GB": (frame(length=2**32 - 1), FrameMalformed),
    "a header longer than the frame": (frame(length=4000), FrameTruncated),
    "a flipped bit in the header": (GOOD[:30] + bytes([GOOD[30] ^ 1]) + GOOD[31:], FrameChecksumWrong),
    "a flipped bit in the payload": (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), FrameChecksumWrong),
    "header is not msgpack": (frame(b"\xc1" * 10), FrameMalformed),
    "header is empty": (frame(b""), FrameMalformed),
    "header goes on after its end": (frame(msgpack.packb(HONEST) + b"\0"), FrameMalformed),
    "header nested without end": (frame(b"\x91" * 3000), FrameMalformed),
    "header is a list": (frame([1, 2]), FrameMalformed),
    "header with a bin key": (frame({b"dtype": "float32"}), FrameMalformed),
    "header with a number as key": (frame({1: 2}), FrameMalformed),
    "header with a list as key": (frame(b"\x81\x90\x01"), FrameMalformed),
    "header with text that is not utf-8": (frame(b"\x81\xa1\xff\x01"), FrameMalformed),
    "header with an extension type": (frame(b"\x81\xa1a\xd4\x01\x00"), FrameMalformed),
    "header with one key more": (lying(more=1), FrameMalformed),
    **{f"no {key}": (without(key), FrameMalformed) for key in HONEST},
    "an unknown dtype": (lying(dtype="float8_e4m3fn"), FrameDtypeUnknown),
    "object dtype": (lying(dtype="object"), FrameDtypeUnknown),
    "a numpy type string as dtype": (lying(dtype="<f4"), FrameDtypeUnknown),
    "dtype is a number": (lying(dtype=4), FrameMalformed),
    "shape of more elements": (lying(shape=[2, 4]), FrameMalformed),
    "shape of fewer elements": (lying(shape=[2, 2]), FrameMalformed),
    "negative shape": (lying(shape=[-2, -3]), FrameMalformed),
    "shape -1": (lying(shape=[-1]), FrameMalformed),
    "shape of floats": (lying(shape=[2.0, 3.0]), FrameMalformed),
    "shape of booleans": (lying(shape=[True, 6]), FrameMalformed),
    "shape is text": (lying(shape="23"), FrameMalformed),
    "shape is missing": (lying(shape=None), FrameMalformed),
    "33 dimensions": (lying(shape=[1] * 33), FrameMalformed),
    "shape overflows 64 bits to 24": (lying(shape=[2**62 + 1, 6]), FrameMalformed),
    "a zero hides huge dimensions": (lying(shape=[0, 2**60, 2**60], size_bytes=0), FrameMalformed),
    "size_bytes of more": (lying(size_bytes=28), FrameMalformed),
    "size_bytes negative": (lying(size_bytes=-24), FrameMalformed),
    "size_bytes is text": (lying(size_bytes="24"), FrameMalformed),
    "a terabyte": (lying(shape=[2**38], size_bytes=2**40), FrameTooLarge),
    "just over the limit": (lying(shape=[257], size_bytes=1028), FrameTooLarge),
    "within the limit but not there": (lying(shape=[256], size_bytes=1024), FrameTruncated),
    "wrong checksum": (lying(checksum=bytes(8)), FrameChecksumWrong),
    "checksum too short": (lying(checksum=bytes(7)), FrameMalformed),
    "checksum is a number": (lying(checksum=7), FrameMalformed),
    "unknown checksum": (lying(checksum_alg="crc32"), FrameMalformed),
    "a bool of 2": (
        frame({**HONEST, "dtype": "bool", "shape": [1], "size_bytes": 1, "checksum": xxhash.xxh3_64_digest(b"\2")}, b"\2"),
        FrameMalformed,
    ),
}


@pytest.mark.parametrize("decode", [decode_tensor, decode_torch])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_frame_is_refused_by_name(case: str, decode: Any) -> None:
    hostile, expected = HOSTILE[case]
    with pytest.raises(FrameError) as caught:
        decode(hostile, limit_bytes=1024)
    assert type(caught.value) is expected


def test_the_honest_frame_around_which_they_are_built_is_read() -> None:
    assert decode_tensor(GOOD, limit_bytes=1024).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert b"".join(encode_tensor(PAYLOAD.reshape(2, 3), limit_bytes=24)) == GOOD


def test_a_header_that_claims_much_takes_no_memory() -> None:
    claims = lying(shape=[2**26], size_bytes=2**28)
    tracemalloc.start()
    try:
        with pytest.raises(FrameTruncated):
            decode_tensor(claims, limit_bytes=2**30)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bit", range(0, len(GOOD) * 8, 7))
def test_no_single_flipped_bit_goes_unnoticed(bit: int) -> None:
    damaged = bytearray(GOOD)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        decode_tensor(damaged, limit_bytes=1024)
