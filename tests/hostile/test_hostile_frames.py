"""Frames that are cut off, damaged or lie; each is refused by name before memory is taken for its payload."""
from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import msgpack
import numpy as np
import pytest
import xxhash
import zstandard
from PIL import Image

from distributed_comfy.errors import (
    FrameChecksumWrong,
    FrameDtypeUnknown,
    FrameEncodingUnknown,
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
    "a version from the future": (frame(version=3), FrameVersionUnknown),
    "a plain frame that calls itself encoded": (frame(version=2), FrameMalformed),
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


LEVELS = np.zeros((1, 8, 8, 3), np.float32)


def deflated(content: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush()


def encoded(encoding: Any, payload: bytes, *, version: int = 2, **changes: Any) -> bytes:
    """A frame whose header is honest unless given, around any payload that calls itself encoded."""
    header = {
        "dtype": "float32", "shape": [1, 8, 8, 3], "size_bytes": 768, "checksum_alg": "xxh3_64", "checksum": xxhash.xxh3_64_digest(payload),
        "encoding": encoding, "stored_bytes": len(payload),
    }  # fmt: skip
    return frame({**header, **changes}, payload, version=version)


def jpeg(size: tuple[int, int] = (8, 8), mode: str = "RGB", file_format: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, file_format)
    return file.getvalue()


def listed(*files: bytes) -> bytes:
    return struct.pack(f"<{len(files)}I", *map(len, files)) + b"".join(files)


SMALL_JPEG = listed(jpeg())
BLACK = deflated(bytes(192))
HALVES = deflated(bytes(384))
ZSTD = zstandard.ZstdCompressor().compress(bytes(768))
SHORT = zstandard.ZstdCompressor().compress(bytes(700))
NO_SIZE = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(768))

HOSTILE_ENCODED: dict[str, tuple[bytes, type[FrameError]]] = {
    "an unknown encoding": (encoded("png", BLACK), FrameEncodingUnknown),
    "encoding is a number": (encoded(7, BLACK), FrameMalformed),
    "encoding is empty": (encoded("", BLACK), FrameEncodingUnknown),
    "plain in version 2": (encoded("plain", BLACK), FrameMalformed),
    "encoded in version 1": (encoded("uint8", BLACK, version=1), FrameMalformed),
    "stored_bytes of more": (encoded("uint8", BLACK, stored_bytes=len(BLACK) + 1), FrameTruncated),
    "stored_bytes of fewer": (encoded("uint8", BLACK, stored_bytes=len(BLACK) - 1), FrameMalformed),
    "stored_bytes no fewer than size_bytes": (encoded("uint8", bytes(768)), FrameMalformed),
    "stored_bytes negative": (encoded("uint8", BLACK, stored_bytes=-1), FrameMalformed),
    "stored_bytes is a boolean": (encoded("uint8", b"\0", stored_bytes=True), FrameMalformed),
    "nothing stored": (encoded("uint8", b""), FrameMalformed),
    "an empty tensor with a payload": (encoded("uint8", BLACK, shape=[0, 8, 8, 3], size_bytes=0), FrameMalformed),
    "a flipped bit before the decoder": (encoded("uint8", BLACK)[:-1] + bytes([BLACK[-1] ^ 1]), FrameChecksumWrong),
    "a tensor over the limit": (encoded("uint8", BLACK, shape=[1, 8, 8, 30], size_bytes=7680), FrameTooLarge),
    "a terabyte of black": (encoded("uint8", BLACK, shape=[2**38], size_bytes=2**40), FrameTooLarge),
    "8 bits of another type": (encoded("uint8", BLACK, dtype="int32"), FrameMalformed),
    "float16 of another type": (encoded("float16", HALVES, dtype="int32"), FrameMalformed),
    "JPEG of another type": (encoded("jpeg", SMALL_JPEG, dtype="int32"), FrameMalformed),
    "deflate that is none": (encoded("uint8", b"\xff" * 50), FrameMalformed),
    "deflate cut off": (encoded("uint8", BLACK[:-2]), FrameMalformed),
    "deflate with something behind": (encoded("uint8", BLACK + b"\0"), FrameMalformed),
    "deflate of a byte too few": (encoded("uint8", deflated(bytes(191))), FrameMalformed),
    "deflate of a byte too many": (encoded("uint8", deflated(bytes(193))), FrameMalformed),
    "a deflate bomb": (encoded("uint8", deflated(bytes(2**17))), FrameMalformed),
    "a deflate bomb as float16": (encoded("float16", deflated(bytes(2**17))), FrameMalformed),
    "float16 of too few": (encoded("float16", deflated(bytes(382))), FrameMalformed),
    "zstd that is none": (encoded("zstd", b"\xff" * 50), FrameMalformed),
    "zstd cut off": (encoded("zstd", ZSTD[:-2]), FrameMalformed),
    "zstd with something behind": (encoded("zstd", ZSTD + b"\0"), FrameMalformed),
    "zstd without its length": (encoded("zstd", NO_SIZE), FrameMalformed),
    "zstd of another length": (encoded("zstd", zstandard.ZstdCompressor().compress(bytes(767))), FrameMalformed),
    "a zstd bomb": (encoded("zstd", zstandard.ZstdCompressor().compress(bytes(2**20))), FrameMalformed),
    "zstd that claims a terabyte": (encoded("zstd", b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + ZSTD[7:]), FrameMalformed),
    "zstd that lies about its length": (encoded("zstd", SHORT[:4] + b"\x60" + struct.pack("<H", 768 - 256) + SHORT[7:]), FrameMalformed),
    "JPEG without lengths": (encoded("jpeg", b"\0"), FrameMalformed),
    "JPEG of a wrong length": (encoded("jpeg", struct.pack("<I", 9) + jpeg()), FrameMalformed),
    "JPEG that is none": (encoded("jpeg", listed(b"\0" * 40)), FrameMalformed),
    "JPEG that is a PNG": (encoded("jpeg", listed(jpeg(file_format="PNG"))), FrameMalformed),
    "JPEG of another size": (encoded("jpeg", listed(jpeg((8, 9)))), FrameMalformed),
    "JPEG of 4 gigapixels": (encoded("jpeg", listed(jpeg((65_000, 1)))), FrameMalformed),
    "JPEG in grey": (encoded("jpeg", listed(jpeg(mode="L"))), FrameMalformed),
    "JPEG cut off": (encoded("jpeg", listed(jpeg()[:300])), FrameMalformed),
    "JPEG in three dimensions": (encoded("jpeg", SMALL_JPEG, shape=[8, 8, 3]), FrameMalformed),
    "JPEG of two channels": (encoded("jpeg", SMALL_JPEG, shape=[1, 8, 12, 2]), FrameMalformed),
}


@pytest.mark.parametrize("decode", [decode_tensor, decode_torch])
@pytest.mark.parametrize("case", HOSTILE_ENCODED)
def test_a_hostile_encoded_frame_is_refused_by_name(case: str, decode: Any) -> None:
    hostile, expected = HOSTILE_ENCODED[case]
    with pytest.raises(FrameError) as caught:
        decode(hostile, limit_bytes=1024)
    assert type(caught.value) is expected


@pytest.mark.parametrize("encoding, payload", [("uint8", BLACK), ("float16", HALVES), ("zstd", ZSTD), ("jpeg", SMALL_JPEG)])
def test_the_honest_encoded_frames_are_read(encoding: str, payload: bytes) -> None:
    decoded = decode_tensor(encoded(encoding, payload), limit_bytes=768)
    assert decoded.shape == (1, 8, 8, 3) and not decoded.any()


@pytest.mark.parametrize("encoding", ["uint8", "float16", "zstd"])
def test_a_bomb_takes_no_memory(encoding: str) -> None:
    blown = bytes(2**26)
    payload = zstandard.ZstdCompressor().compress(blown) if encoding == "zstd" else deflated(blown)
    hostile = encoded(encoding, payload, shape=[1, 200, 200, 3], size_bytes=480_000)
    del blown
    tracemalloc.start()
    try:
        with pytest.raises(FrameMalformed):
            decode_tensor(hostile, limit_bytes=2**30)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("version", [1])
def test_a_reader_of_version_1_refuses_encoded_frames_by_their_version(version: int) -> None:
    """The sixth byte is all that an old reader needs; it looks at it before anything else of the header."""
    pieces = encode_tensor(LEVELS, limit_bytes=768, encoding="uint8")
    assert struct.unpack_from("<4sHHII", pieces[0])[:2] == (b"DCTF", version + 1)
    assert struct.unpack_from("<4sHHII", encode_tensor(LEVELS, limit_bytes=768)[0])[:2] == (b"DCTF", version)


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
