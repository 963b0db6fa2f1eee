"""Values on edges of the graph, into the blob store and back: tensors become frames, dicts are walked, the rest stays in the record.

    engine value -> store_value -> messages.Value + blobs -> load_value -> the same value
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Union

import numpy as np

from distributed_comfy.errors import FrameMalformed, ValueNotSendable
from distributed_comfy.messages import LiteralValue, MappingValue, TensorRef, Value
from distributed_comfy.transport.blobs import BlobReader, BlobStore
from distributed_comfy.transport.encodings import Encoding
from distributed_comfy.transport.frames import (
    BytesLike,
    FramedTensor,
    FrameHeader,
    decode_tensor,
    decode_torch,
    encode_tensor,
    frame_size_bytes,
    is_torch,
    payload_size_bytes,
    read_header,
    tensor_dtype,
)

Literal = Union[None, bool, int, float, str, list["Literal"]]


def store_value(  # noqa: PLR0913 - all but the first three say how, by name
    store: BlobStore, name: str, value: Any, *, job_id: str, limit_bytes: int, encoding: Encoding = "plain"
) -> Value:
    """Store the tensors of a value and return the record that stands for it.

    Args:
        name: of the blobs; an entry of a dict adds ``.<key>``.  Holds the claim id, so that no two executions share a blob.
        value: torch or numpy tensor, or a `FramedTensor`, which stays as it is; number, text, boolean, None or a list of these; a dict of
            values with text keys.  A tuple counts as a list, a numpy scalar as its number.
        limit_bytes: largest single tensor.
        encoding: of every tensor that it suits.
    Raises:
        ValueNotSendable: anything else, or a number that is not finite (JSON has none); checked before anything is stored.
        FrameTooLarge, FrameDtypeUnknown, BlobStoreFull, ConnectionLost: what is stored by then goes with the job's blobs.
    """
    _check(value, "the value")
    return _store(store, name, value, lambda tensor: encode_tensor(tensor, limit_bytes=limit_bytes, encoding=encoding), job_id)


def load_value(store: BlobReader, value: Value, *, as_torch: bool) -> Any:
    """The value that `store_value` took: tensors as torch (CPU) or numpy, dicts as dicts.

    Raises:
        BlobMissing: a blob is gone.
        FrameError: a blob is not what was stored; `FrameMalformed` where it is another tensor than the record says.
    """
    if isinstance(value, MappingValue):
        return {key: load_value(store, entry, as_torch=as_torch) for key, entry in value.entries.items()}
    if isinstance(value, LiteralValue):
        return value.literal
    return _load_tensor(store, value, as_torch)


def framed_value(store: BlobReader, value: Value, *, limit_bytes: int) -> Any:
    """As `load_value`, with tensors as `FramedTensor`: whoever reads them in the end compares their checksums.

    Args:
        limit_bytes: largest single tensor.
    """
    if isinstance(value, MappingValue):
        return {key: framed_value(store, entry, limit_bytes=limit_bytes) for key, entry in value.entries.items()}
    if isinstance(value, LiteralValue):
        return value.literal
    frame = store.get(value.blob)
    return FramedTensor(frame, _checked_header(frame, value, limit_bytes))


def value_blobs(value: Value) -> list[str]:
    """Ids of all blobs that a value refers to."""
    if isinstance(value, MappingValue):
        return [blob for entry in value.entries.values() for blob in value_blobs(entry)]
    return [value.blob] if isinstance(value, TensorRef) else []


def expected_ref(store: BlobStore, name: str, *, dtype: str, shape: Sequence[int]) -> TensorRef:
    """The record that `store_value` will return for such a tensor in a plain frame, before it is stored.

    Raises:
        FrameDtypeUnknown, FrameMalformed: no such tensor travels.
    """
    size_bytes = frame_size_bytes(dtype, shape)
    return _ref(store.blob_id(name, size_bytes), dtype, shape)


def _check(value: Any, where: str) -> None:
    """Walk a value before any of it is stored."""
    if isinstance(value, FramedTensor):
        return
    if _is_tensor(value):
        tensor_dtype(value)
    elif isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise ValueNotSendable(where=f"a key of {where}", kind=type(key).__name__)
            _check(entry, f"{where}[{key!r}]")
    else:
        _literal(value, where)


def _store(store: BlobStore, name: str, value: Any, encode: Callable[[Any], list[BytesLike]], job_id: str) -> Value:
    if isinstance(value, FramedTensor):
        header = value.header
        ref = TensorRef(store.put(name, [value.frame], job_id=job_id), header.dtype, header.shape, header.size_bytes)
        return ref if header.encoding == "plain" else replace(ref, stored_bytes=header.stored_bytes)
    if _is_tensor(value):
        pieces = encode(value)
        ref = _ref(store.put(name, pieces, job_id=job_id), tensor_dtype(value), value.shape)
        stored_bytes = len(pieces[1])
        return ref if stored_bytes == ref.size_bytes else replace(ref, stored_bytes=stored_bytes)
    if isinstance(value, dict):
        return MappingValue({key: _store(store, f"{name}.{key}", entry, encode, job_id) for key, entry in value.items()})
    return LiteralValue(_literal(value, name))


def _load_tensor(store: BlobReader, ref: TensorRef, as_torch: bool) -> Any:
    frame = store.get(ref.blob)
    limit_bytes = max(len(frame), ref.size_bytes)
    _checked_header(frame, ref, limit_bytes)
    return (decode_torch if as_torch else decode_tensor)(frame, limit_bytes=limit_bytes)


def _checked_header(frame: BytesLike, ref: TensorRef, limit_bytes: int) -> FrameHeader:
    """The header of a frame that is that of the record."""
    header = read_header(frame, limit_bytes=limit_bytes)
    if (header.dtype, header.shape) != (ref.dtype, tuple(ref.shape)):
        raise FrameMalformed(
            reason=f"blob {ref.blob} holds {header.dtype} {list(header.shape)}, its record says {ref.dtype} {list(ref.shape)}"
        )
    return header


def _ref(blob: str, dtype: str, shape: Sequence[int]) -> TensorRef:
    sizes = tuple(int(size) for size in shape)
    return TensorRef(blob=blob, dtype=dtype, shape=sizes, size_bytes=payload_size_bytes(dtype, sizes))


def _is_tensor(value: Any) -> bool:
    return is_torch(value) or isinstance(value, np.ndarray)


def _literal(value: Any, where: str) -> Literal:
    """A value that JSON holds exactly."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [_literal(element, f"{where}[{index}]") for index, element in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueNotSendable(where=where, kind=f"the number {value}")
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueNotSendable(where=where, kind=f"a {type(value).__name__}")
    return value
