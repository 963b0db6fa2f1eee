"""Tensor frames: one tensor as bytes and back, bit for bit, with everything checked before anything is allocated.

A frame, all integers little-endian::

    offset  size  field
    0       4     magic, ``DCTF``
    4       2     version, 1 or 2
    6       2     reserved, 0
    8       4     header length h, at most 4096
    12      4     xxh32 of the header
    16      h     header, a msgpack map with exactly these keys:
                  dtype "float32", shape [1, 512, 512, 3], size_bytes 3145728, checksum_alg "xxh3_64", checksum (8 bytes, big-endian)
    16+h    p     zeros up to the next multiple of 64, so that the payload is aligned
    16+h+p  size  payload: the elements in C order, little-endian, as they lie in memory

Version 2 is written where the payload is in another encoding (`encodings`), and only there: readers of version 1 read all plain frames and
refuse the others by their version.  Its header has two keys more, encoding ("uint8") and stored_bytes (fewer than size_bytes), and its
payload has stored_bytes; the other keys are those of the decoded tensor, and the checksum is that of the payload as it is stored, so
nothing damaged reaches a decoder.

The two checksums cover header and payload.  Torch is used only where the caller brings or asks for torch tensors; bfloat16, which
numpy lacks, is decoded by numpy as the float32 of the same value.
"""
from __future__ import annotations

import math
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Union

import msgpack
import numpy as np
import xxhash
from numpy.typing import NDArray

from distributed_comfy.errors import (
    FrameChecksumWrong,
    FrameDtypeUnknown,
    FrameMalformed,
    FrameTooLarge,
    FrameTruncated,
    FrameVersionUnknown,
)
from distributed_comfy.transport.encodings import Encoding, decode_payload, encode_payload

if TYPE_CHECKING:
    import torch

BytesLike = Union[bytes, bytearray, memoryview]

FRAME_VERSION = 1
ENCODED_VERSION = 2
"""Of frames whose payload is in another encoding."""
_MAGIC = b"DCTF"
_PREAMBLE = struct.Struct("<4sHHII")
_ALIGNMENT = 64
_HEADER_LIMIT_BYTES = 4096
_DIMENSIONS_LIMIT = 32  # what numpy 1 can hold
_CHECKSUM_ALG = "xxh3_64"
_HEADER_KEYS = {
    FRAME_VERSION: frozenset({"dtype", "shape", "size_bytes", "checksum_alg", "checksum"}),
    ENCODED_VERSION: frozenset({"dtype", "shape", "size_bytes", "checksum_alg", "checksum", "encoding", "stored_bytes"}),
}

_STORED_AS = {
    "bool": np.dtype("|b1"),
    "uint8": np.dtype("|u1"),
    "int8": np.dtype("|i1"),
    "uint16": np.dtype("<u2"),
    "int16": np.dtype("<i2"),
    "uint32": np.dtype("<u4"),
    "int32": np.dtype("<i4"),
    "uint64": np.dtype("<u8"),
    "int64": np.dtype("<i8"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "complex64": np.dtype("<c8"),
}
"""Element type -> the numpy type of the same width that its payload is read as."""

DTYPES = tuple(_STORED_AS)
"""The element types that travel."""


@dataclass(frozen=True)
class FrameHeader:
    """What a frame says about its payload, checked against the frame's length."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    """Bytes of the elements."""
    checksum: bytes
    """xxh3_64 of the payload, 8 bytes big-endian."""
    payload_offset: int = 0
    """Where the payload begins in the frame."""
    encoding: str = "plain"
    """How the payload is encoded."""
    stored_bytes: int = 0
    """Payload bytes; as many as `size_bytes` in a plain frame."""


@dataclass(frozen=True)
class FramedTensor:
    """A tensor that came as a frame and goes on as it is, by whoever has no use for its elements."""

    frame: BytesLike
    header: FrameHeader


def encode_tensor(tensor: Any, *, limit_bytes: int, encoding: Encoding = "plain") -> list[BytesLike]:
    """Turn a tensor into the pieces of one frame; join them or send them one after the other.

    A plain payload is not copied when the tensor is contiguous, little-endian and in main memory: it must not change until the pieces
    have been sent.

    Args:
        tensor: torch tensor on any device, or numpy array; any shape, zero-size and 0-d included.
        limit_bytes: largest tensor allowed, by its elements.
        encoding: how the payload is to be encoded, where that suits the tensor; else the frame is plain.
    Returns:
        [header with its padding, payload].
    Raises:
        FrameTooLarge: the payload is over the limit.
        FrameDtypeUnknown: an element type outside `DTYPES`, or a sparse or quantised tensor.
        FrameMalformed: more than 32 dimensions.
    """
    dtype, shape = tensor_dtype(tensor), tuple(int(size) for size in tensor.shape)
    size_bytes = payload_size_bytes(dtype, shape)
    if size_bytes > limit_bytes:
        raise FrameTooLarge(size_bytes=size_bytes, limit_bytes=limit_bytes)
    payload = _payload(tensor, dtype)
    encoded = encode_payload(encoding, payload, dtype, shape)
    if encoded is not None:
        name, stored = encoded
        extra = {"encoding": name, "stored_bytes": len(stored)}
        return [_head(dtype, shape, xxhash.xxh3_64_digest(stored), extra), stored]
    return [_head(dtype, shape, xxhash.xxh3_64_digest(payload)), payload]


def decode_tensor(frame: BytesLike, *, limit_bytes: int) -> NDArray[Any]:
    """Read a frame as a numpy array; bfloat16 becomes the float32 of the same value.

    The array shares a plain frame's memory (and is read-only where the frame is), except for bfloat16.

    Args:
        frame: a whole frame and nothing after it.
        limit_bytes: largest tensor allowed, by its elements; an encoded frame may be much smaller.
    Raises:
        FrameTruncated, FrameMalformed, FrameVersionUnknown, FrameDtypeUnknown, FrameTooLarge, FrameChecksumWrong: before any
            memory is taken for the payload.
        FrameEncodingUnknown, FrameEncodingMissing: it cannot be decoded here.
    """
    header, raw = _checked(frame, limit_bytes)
    elements = raw.view(_STORED_AS[header.dtype])
    if header.dtype == "bfloat16":
        elements = (elements.astype(np.uint32) << 16).view(np.float32)
    return elements.reshape(header.shape)


def decode_torch(frame: BytesLike, *, limit_bytes: int) -> torch.Tensor:
    """Read a frame as a torch tensor on the CPU, in its own element type.

    The tensor shares the frame's memory where that is writable, and copies it where it is not.  Errors as `decode_tensor`.
    """
    import torch

    header, raw = _checked(frame, limit_bytes)
    dtype = getattr(torch, header.dtype)
    if not raw.size:
        return torch.empty(header.shape, dtype=dtype)
    return torch.from_numpy(raw if raw.flags.writeable else raw.copy()).view(dtype).reshape(header.shape)


def read_header(frame: BytesLike, *, limit_bytes: int) -> FrameHeader:
    """Check everything of a frame but its payload's checksum; allocates nothing.  Errors as `decode_tensor`."""
    have_bytes = len(frame)
    version, packed, header_end = _packed_header(frame)
    header = _fields(packed, version)
    if header.dtype not in _STORED_AS:
        raise FrameDtypeUnknown(dtype=header.dtype, known=list(DTYPES))
    if header.size_bytes != payload_size_bytes(header.dtype, header.shape):
        raise FrameMalformed(reason=f"{header.size_bytes} bytes are not {header.dtype} of shape {list(header.shape)}")
    if header.size_bytes > limit_bytes:
        raise FrameTooLarge(size_bytes=header.size_bytes, limit_bytes=limit_bytes)
    offset = _aligned(header_end)
    end = offset + header.stored_bytes
    if have_bytes < end:
        raise FrameTruncated(have_bytes=have_bytes, need_bytes=end)
    if have_bytes > end or any(frame[header_end:offset]):
        raise FrameMalformed(reason="it has bytes that belong to neither header nor payload")
    return replace(header, payload_offset=offset)


def frame_size_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Length of the plain frame of such a tensor, so that its blob's id is known before there is a tensor.

    Raises:
        FrameDtypeUnknown, FrameMalformed: as `encode_tensor`.
    """
    return len(_head(dtype, tuple(shape), bytes(8))) + payload_size_bytes(dtype, shape)


def payload_size_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Payload bytes of such a tensor.

    Raises:
        FrameDtypeUnknown: the element type is not one of ours.
        FrameMalformed: more dimensions or larger ones than any array can have (numpy counts a 0 as a 1 there).
    """
    if dtype not in _STORED_AS:
        raise FrameDtypeUnknown(dtype=dtype, known=list(DTYPES))
    itemsize = _STORED_AS[dtype].itemsize
    if len(shape) > _DIMENSIONS_LIMIT or math.prod(max(size, 1) for size in shape) * itemsize >= 2**63:
        raise FrameMalformed(reason=f"no array has the shape {list(shape)}")
    return math.prod(shape) * itemsize


def tensor_dtype(tensor: Any) -> str:
    """Name of a tensor's element type, the same for torch and numpy.

    Raises:
        FrameDtypeUnknown: it is none of `DTYPES`.
    """
    if is_torch(tensor):
        strided = str(tensor.layout) == "torch.strided" and not tensor.is_quantized
        name = str(tensor.dtype).removeprefix("torch.") if strided else f"{tensor.layout} {tensor.dtype}"
    else:
        name = np.dtype(tensor.dtype).newbyteorder("=").name
    if name not in _STORED_AS:
        raise FrameDtypeUnknown(dtype=name, known=list(DTYPES))
    return name


def is_torch(value: Any) -> bool:
    """Whether ``value`` is a torch tensor; does not import torch, for without it nothing is."""
    torch_module = sys.modules.get("torch")
    return torch_module is not None and isinstance(value, torch_module.Tensor)


def _payload(tensor: Any, dtype: str) -> memoryview:
    """The elements as flat bytes, copied only where the layout demands it."""
    if is_torch(tensor):
        import torch

        tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        array = (tensor.view(torch.int16) if dtype == "bfloat16" else tensor).numpy()
    else:
        array = tensor
    flat = np.ascontiguousarray(array, dtype=np.dtype(array.dtype).newbyteorder("<")).reshape(-1)
    return flat.view(np.uint8).data


def _head(dtype: str, shape: tuple[int, ...], checksum: bytes, extra: Mapping[str, Any] | None = None) -> bytes:
    """Preamble, header and padding; without ``extra`` its length depends on element type and shape alone."""
    version = ENCODED_VERSION if extra else FRAME_VERSION
    fields = {
        "dtype": dtype,
        "shape": shape,
        "size_bytes": payload_size_bytes(dtype, shape),
        "checksum_alg": _CHECKSUM_ALG,
        "checksum": checksum,
        **(extra or {}),
    }
    packed: bytes = msgpack.packb(fields)
    head: bytes = _PREAMBLE.pack(_MAGIC, version, 0, len(packed), xxhash.xxh32_intdigest(packed)) + packed
    return head.ljust(_aligned(len(head)), b"\0")


def _checked(frame: BytesLike, limit_bytes: int) -> tuple[FrameHeader, NDArray[np.uint8]]:
    """The header and the elements' bytes, aligned, the checksum compared."""
    header = read_header(frame, limit_bytes=limit_bytes)
    raw = np.frombuffer(frame, np.uint8, header.stored_bytes, header.payload_offset) if header.stored_bytes else np.empty(0, np.uint8)
    found = xxhash.xxh3_64_digest(raw.data)
    if found != header.checksum:
        raise FrameChecksumWrong(found=found.hex(), expected=header.checksum.hex())
    if header.encoding != "plain":
        raw = decode_payload(header.encoding, raw.data, header.dtype, header.shape, header.size_bytes)
    if header.dtype == "bool" and raw.size and raw.max() > 1:
        raise FrameMalformed(reason="a bool is neither 0 nor 1")
    aligned = raw.ctypes.data % _STORED_AS[header.dtype].itemsize == 0
    return header, raw if aligned else raw.copy()


def _packed_header(frame: BytesLike) -> tuple[int, bytes, int]:
    """The frame's version, the msgpack bytes of the header and where they end."""
    if len(frame) < _PREAMBLE.size:
        raise FrameTruncated(have_bytes=len(frame), need_bytes=_PREAMBLE.size)
    magic, version, reserved, length, checksum = _PREAMBLE.unpack_from(frame)
    if magic != _MAGIC:
        raise FrameMalformed(reason=f"it begins with {magic!r}, not {_MAGIC!r}")
    if version not in _HEADER_KEYS:
        raise FrameVersionUnknown(version=version, known=list(_HEADER_KEYS))
    if reserved or length > _HEADER_LIMIT_BYTES:
        raise FrameMalformed(reason=f"its header length is {length} and its reserved field {reserved}")
    end = _PREAMBLE.size + length
    if len(frame) < end:
        raise FrameTruncated(have_bytes=len(frame), need_bytes=end)
    packed = bytes(frame[_PREAMBLE.size : end])
    found = xxhash.xxh32_intdigest(packed)
    if found != checksum:
        raise FrameChecksumWrong(found=f"{found:08x}", expected=f"{checksum:08x}")
    return version, packed, end


def _fields(packed: bytes, version: int) -> FrameHeader:
    """The header's fields, each of its type and range."""
    try:
        header = msgpack.unpackb(packed, strict_map_key=True, max_array_len=_DIMENSIONS_LIMIT, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise FrameMalformed(reason=f"its header is not msgpack: {error or type(error).__name__}") from error
    if not isinstance(header, dict) or header.keys() != _HEADER_KEYS[version]:
        raise FrameMalformed(reason=f"its header is not a map of {', '.join(sorted(_HEADER_KEYS[version]))}")
    dtype, shape, size_bytes = header["dtype"], header["shape"], header["size_bytes"]
    encoding: Any = header.get("encoding", "plain")
    stored_bytes: Any = header.get("stored_bytes", size_bytes)
    if not isinstance(dtype, str) or not isinstance(encoding, str):
        raise FrameMalformed(reason="its dtype or encoding is not text")
    if not isinstance(shape, list) or not all(_is_size(size) for size in [*shape, size_bytes, stored_bytes]):
        raise FrameMalformed(reason="its shape or size is not made of numbers from 0 up")
    if header["checksum_alg"] != _CHECKSUM_ALG or not isinstance(header["checksum"], bytes) or len(header["checksum"]) != 8:
        raise FrameMalformed(reason=f"its checksum is not an {_CHECKSUM_ALG} of 8 bytes")
    if version == ENCODED_VERSION and (encoding == "plain" or stored_bytes >= size_bytes):
        raise FrameMalformed(reason=f"{stored_bytes} bytes in encoding {encoding} are no shorter than {size_bytes}")
    return FrameHeader(dtype, tuple(shape), size_bytes, header["checksum"], encoding=encoding, stored_bytes=stored_bytes)


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
