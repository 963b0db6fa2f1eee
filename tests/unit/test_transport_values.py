"""Values on edges: what travels, what is refused before anything is stored, and what a damaged store gives."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from distributed_comfy.errors import BlobMissing, FrameDtypeUnknown, FrameMalformed, FrameTooLarge, ValueNotSendable
from distributed_comfy.messages import LiteralValue, MappingValue, TensorRef, Value, dump, load
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from distributed_comfy.transport.values import expected_ref, framed_value, load_value, store_value, value_blobs

LIMIT_BYTES = 2**20


@pytest.fixture
def store() -> MemoryBlobStore:
    return MemoryBlobStore(chunk_bytes=1000)


def stored(store: MemoryBlobStore, value: Any) -> Value:
    return store_value(store, "job/claim/5.images", value, job_id="job", limit_bytes=LIMIT_BYTES)


def test_an_image_travels_as_a_tensor_ref(store: MemoryBlobStore) -> None:
    image = torch.rand(2, 8, 8, 3) * 3 - 1
    ref = stored(store, image)
    assert ref == TensorRef(blob="job/claim/5.images#2", dtype="float32", shape=(2, 8, 8, 3), size_bytes=1536)
    assert torch.equal(load_value(store, ref, as_torch=True), image)
    np.testing.assert_array_equal(load_value(store, ref, as_torch=False), image.numpy())


def test_a_latent_travels_as_a_dict_with_the_rest_of_it(store: MemoryBlobStore) -> None:
    latent = {
        "samples": torch.randn(1, 4, 8, 8, dtype=torch.float16),
        "noise_mask": np.ones((1, 64, 64), np.float32),
        "batch_index": [0, 1, 2],
        "deep": {"er": {"still": torch.tensor(3), "nothing": None}, "empty": {}},
    }
    value = stored(store, latent)
    assert isinstance(value, MappingValue)
    assert value_blobs(value) == [
        "job/claim/5.images.samples#1",
        "job/claim/5.images.noise_mask#17",
        "job/claim/5.images.deep.er.still#1",
    ]
    back = load_value(store, load(MappingValue, dump(value)), as_torch=True)
    assert torch.equal(back["samples"], latent["samples"])
    assert torch.equal(back["noise_mask"], torch.ones(1, 64, 64))
    assert back["batch_index"] == [0, 1, 2]
    assert back["deep"]["er"]["still"].shape == ()
    assert (back["deep"]["er"]["nothing"], back["deep"]["empty"]) == (None, {})


@pytest.mark.parametrize("literal", [None, True, 0, 2**64 - 1, -1.5, "", "text ä", [1, [2.5, "x"], None], 1e-320, -0.0])
def test_numbers_and_text_travel_in_the_record(store: MemoryBlobStore, literal: Any) -> None:
    value = stored(store, literal)
    assert isinstance(value, LiteralValue)
    back = load_value(store, load(LiteralValue, dump(value)), as_torch=True)
    assert (back, type(back), repr(back)) == (literal, type(literal), repr(literal))
    assert value_blobs(value) == []


def test_tuples_become_lists_and_numpy_scalars_numbers(store: MemoryBlobStore) -> None:
    assert stored(store, (1, (np.int64(2), np.float32(0.5), np.bool_(True)))) == LiteralValue([1, [2, 0.5, True]])


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "the value is a object"),
        ({"a": {"b": b"bytes"}}, "the value['a']['b'] is a bytes"),
        ({"good": np.zeros(3), "bad": {1: 2}}, "a key of the value['bad'] is int"),
        ([1, {2}], "the value[1] is a set"),
        (float("nan"), "the value is the number nan"),
        ({"good": np.zeros(3), "bad": [0.0, float("-inf")]}, "the value['bad'][1] is the number -inf"),
        ([torch.zeros(1)], "the value[0] is a Tensor"),
    ],
)
def test_anything_else_is_refused_by_name_before_anything_is_stored(store: MemoryBlobStore, value: Any, named: str) -> None:
    with pytest.raises(ValueNotSendable, match="cannot travel") as caught:
        stored(store, value)
    assert str(caught.value).startswith(named)
    assert not store.exists(["job/claim/5.images.good#1"])[0]


def test_an_element_type_nobody_reads_is_refused_before_anything_is_stored(store: MemoryBlobStore) -> None:
    with pytest.raises(FrameDtypeUnknown):
        stored(store, {"good": np.zeros(3), "bad": np.zeros(3, np.complex128)})
    assert not store.exists(["job/claim/5.images.good#1"])[0]


def test_a_tensor_over_the_limit_is_refused(store: MemoryBlobStore) -> None:
    with pytest.raises(FrameTooLarge):
        store_value(store, "a", torch.zeros(100), job_id="job", limit_bytes=399)


def test_a_record_can_be_written_before_its_tensor(store: MemoryBlobStore) -> None:
    for tensor in (torch.zeros(3, 70, 5), torch.tensor(1.0), torch.zeros(0, 4), torch.zeros(5, dtype=torch.bfloat16)):
        expected = expected_ref(store, "ahead", dtype=str(tensor.dtype)[6:], shape=tensor.shape)
        assert store_value(store, "ahead", tensor, job_id="job", limit_bytes=LIMIT_BYTES) == expected


def test_a_blob_that_holds_another_tensor_than_its_record_says_is_malformed(store: MemoryBlobStore) -> None:
    ref = stored(store, torch.zeros(2, 3))
    assert isinstance(ref, TensorRef)
    for shape, dtype in (((3, 2), "float32"), ((2, 3), "int32")):
        lying = TensorRef(blob=ref.blob, dtype=dtype, shape=shape, size_bytes=24)
        with pytest.raises(FrameMalformed, match="its record says"):
            load_value(store, lying, as_torch=False)


def test_a_blob_that_is_gone_is_missing(store: MemoryBlobStore) -> None:
    value = stored(store, {"samples": torch.zeros(2, 3)})
    store.drop_job("job")
    with pytest.raises(BlobMissing):
        load_value(store, value, as_torch=True)


@pytest.mark.parametrize("encoding", ["plain", "float16"])
def test_a_value_is_handed_on_from_store_to_store_without_being_decoded(store: MemoryBlobStore, encoding: Any) -> None:
    latent = {"samples": torch.rand(1, 4, 32, 32), "half": torch.rand(3, dtype=torch.bfloat16), "batch_index": [1], "text": "x"}
    first = store_value(store, "first", latent, job_id="", limit_bytes=LIMIT_BYTES, encoding=encoding)
    other = MemoryBlobStore()
    second = store_value(other, "second", framed_value(store, first, limit_bytes=LIMIT_BYTES), job_id="job", limit_bytes=LIMIT_BYTES)
    assert isinstance(first, MappingValue) and isinstance(second, MappingValue)
    for key, ref in first.entries.items():
        copy = second.entries[key]
        if isinstance(ref, TensorRef) and isinstance(copy, TensorRef):
            assert replace(copy, blob=ref.blob) == ref and bytes(other.get(copy.blob)) == bytes(store.get(ref.blob))
        else:
            assert copy == ref


def test_a_frame_over_the_limit_or_of_another_tensor_is_not_handed_on(store: MemoryBlobStore) -> None:
    ref = stored(store, torch.zeros(100))
    with pytest.raises(FrameTooLarge):
        framed_value(store, ref, limit_bytes=399)
    assert isinstance(ref, TensorRef)
    with pytest.raises(FrameMalformed, match="its record says"):
        framed_value(store, replace(ref, shape=(10, 10)), limit_bytes=LIMIT_BYTES)
