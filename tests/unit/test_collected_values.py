"""What a master's nodes give of a job that is in the spool: every bit that was captured, in the order of items."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed_comfy.collector.spool import Spool
from distributed_comfy.comfyui.collected import collected_values, upscaled_value
from distributed_comfy.errors import SizesDiffer
from distributed_comfy.messages import CollectorPlan, ItemResult, JobRecord
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tests.collected_jobs import COLLECTOR, audio, capture, image, job_record, open_spool

NOTHING = object()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with open_spool(tmp_path) as opened:
        yield opened


def put(spool: Spool, index: int, **slots: Any) -> None:
    """One item with a value, or a list of them, at each slot."""
    store, claim = MemoryBlobStore(), f"claim{index}"
    captures = [
        capture(store, f"{claim}-{slot}-{at}", COLLECTOR, slot, value, list_index=at)
        for slot, given in slots.items()
        for at, value in enumerate(given if isinstance(given, list) else [given])
    ]
    assert spool.add(index, claim, ItemResult(tuple(captures)), store)


def collected(spool: Spool, items: int, *slots: str, on_missing: Any = "error") -> tuple[Any, ...]:
    record: JobRecord = job_record(items, slots=slots)
    plan: CollectorPlan = replace(record.collectors[0], on_missing=on_missing)
    return collected_values(spool, replace(record, collectors=(plan,)), plan, NOTHING)


@pytest.mark.parametrize("shape", [(1, 8, 6, 3), (3, 5, 7, 4), (2, 64, 64, 1)])
def test_images_of_any_batch_and_number_of_channels_come_bit_for_bit_in_the_order_of_items(spool: Spool, shape: tuple[int, ...]) -> None:
    batches = [image(seed, shape) * 100 - 50 for seed in range(3)]
    for index in (2, 0, 1):
        put(spool, index, images=batches[index])
    images, *_ = collected(spool, 3, "images")
    assert images.dtype == torch.float32
    assert images.numpy().tobytes() == np.concatenate(batches).tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "uint8"])
def test_an_element_type_stays_what_it_was(spool: Spool, dtype: str) -> None:
    batch = (torch.rand(2, 4, 4, 3) * 200).to(getattr(torch, dtype))
    put(spool, 0, images=batch)
    images, *_ = collected(spool, 1, "images")
    assert images.dtype == batch.dtype and torch.equal(images, batch)


def test_lists_come_in_their_order_and_batches_of_other_lengths_are_one_batch(spool: Spool) -> None:
    first, second, third = image(1, (1, 4, 4, 3)), image(2, (3, 4, 4, 3)), image(3, (2, 4, 4, 3))
    put(spool, 0, images=[first, second])
    put(spool, 1, images=third)
    images, *_ = collected(spool, 2, "images")
    assert images.numpy().tobytes() == np.concatenate([first, second, third]).tobytes()


def test_all_slots_come_at_once_and_those_that_nothing_feeds_give_nothing(spool: Spool) -> None:
    for index in range(2):
        latent = {"samples": image(index, (1, 4, 8, 8)), "noise_mask": image(9 + index, (1, 64, 64))}
        put(spool, index, audio=audio(index, 10 + index), latents=latent, masks=image(index, (1, 6, 5)))
    images, sound, latents, masks = collected(spool, 2, "audio", "latents", "masks")
    assert images.shape == (0, 64, 64, 3)
    assert sound["waveform"].shape == (1, 2, 21) and sound["sample_rate"] == 44_100
    assert latents["samples"].shape == (2, 4, 8, 8) and latents["noise_mask"].shape[0] == 2
    assert masks.shape == (2, 6, 5)


def test_what_is_given_may_be_changed_and_does_not_need_the_spool(spool: Spool) -> None:
    put(spool, 0, images=image(1))
    images, *_ = collected(spool, 1, "images")
    spool.discard(0)
    images += 1
    assert images.numpy().tobytes() == (image(1) + np.float32(1)).tobytes()


def test_a_slot_that_no_item_gave_a_value_stops_what_is_behind(spool: Spool) -> None:
    put(spool, 0)
    assert collected(spool, 1, "images")[0] is NOTHING


def test_missing_items_are_left_out_or_stood_in_for(spool: Spool) -> None:
    batches = {index: image(index) for index in (0, 2)}
    for index, batch in batches.items():
        put(spool, index, images=batch)
    assert collected(spool, 3, "images", on_missing="drop")[0].shape[0] == 2
    images, *_ = collected(spool, 3, "images", on_missing="repeat")
    assert images.numpy().tobytes() == np.concatenate([batches[0], batches[0], batches[2]]).tobytes()


def test_sizes_that_differ_are_named(spool: Spool) -> None:
    put(spool, 0, images=image(0, (1, 8, 6, 3)))
    put(spool, 1, images=image(1, (1, 8, 7, 3)))
    with pytest.raises(SizesDiffer):
        collected(spool, 2, "images")


def test_an_upscale_gives_memory_of_its_own() -> None:
    canvas = image(1, (2, 8, 8, 3))
    (given,) = upscaled_value(canvas)
    before = canvas.tobytes()
    canvas[:] = 0
    assert given.numpy().tobytes() == before
