"""Order and joining of captures."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distributed_comfy.collector.assemble import (
    BatchCheck,
    blocked_items,
    collected_images,
    edge_values,
    joined_audio,
    joined_images,
    placed_values,
)
from distributed_comfy.collector.spool import Spool
from distributed_comfy.errors import AudioDiffers, PictureUnsavable, SizesDiffer
from distributed_comfy.messages import Capture, ItemResult, LiteralValue
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tests.collected_jobs import COLLECTOR, EDGE, audio, capture, image, image_result, open_spool


@pytest.fixture
def store() -> MemoryBlobStore:
    return MemoryBlobStore()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return open_spool(tmp_path)


def add(spool: Spool, store: MemoryBlobStore, index: int, result: ItemResult) -> None:
    spool.add(index, f"c{index}", result, store)


def test_images_stand_by_item_then_list_then_batch(spool: Spool, store: MemoryBlobStore) -> None:
    batches = {(index, position): image(10 * index + position, (2, 4, 4, 3)) for index in range(3) for position in range(2)}
    for index in (2, 0, 1):
        result = image_result(store, f"c{index}", batches[index, 0], batches[index, 1])
        add(spool, store, index, ItemResult(captures=tuple(reversed(result.captures))))
    expected = np.concatenate([batches[index, position] for index in range(3) for position in range(2)])
    assert joined_images(spool, COLLECTOR).tobytes() == expected.tobytes()
    assert [(found.index, found.list_index) for found in collected_images(spool, COLLECTOR)] == sorted(batches)
    assert np.concatenate([found.images for found in collected_images(spool, COLLECTOR)]).tobytes() == expected.tobytes()


def test_a_blocked_item_contributes_no_image_and_is_reported(spool: Spool, store: MemoryBlobStore) -> None:
    add(spool, store, 0, image_result(store, "c0", image(0)))
    add(spool, store, 1, ItemResult(blocked=(COLLECTOR,)))
    add(spool, store, 2, image_result(store, "c2", image(2)))
    assert np.array_equal(joined_images(spool, COLLECTOR), np.concatenate([image(0), image(2)]))
    assert blocked_items(spool, COLLECTOR) == [1]


def test_batches_without_images_do_not_count_beside_others(spool: Spool, store: MemoryBlobStore) -> None:
    add(spool, store, 0, image_result(store, "c0", np.zeros((0, 64, 64, 3), np.float32)))
    add(spool, store, 1, image_result(store, "c1", image(1)))
    assert np.array_equal(joined_images(spool, COLLECTOR), image(1))


def test_no_images_at_all_are_an_empty_batch(spool: Spool, store: MemoryBlobStore) -> None:
    add(spool, store, 0, ItemResult(blocked=(COLLECTOR,)))
    assert joined_images(spool, COLLECTOR).shape == (0, 64, 64, 3)
    add(spool, store, 1, image_result(store, "c1", np.zeros((0, 32, 16, 4), np.float32)))
    assert joined_images(spool, COLLECTOR).shape == (0, 32, 16, 4)


def test_other_sizes_name_both_items(spool: Spool, store: MemoryBlobStore) -> None:
    add(spool, store, 0, image_result(store, "c0", image(0, (1, 8, 6, 3))))
    add(spool, store, 4, image_result(store, "c4", image(4, (1, 8, 8, 3))))
    with pytest.raises(SizesDiffer) as caught:
        joined_images(spool, COLLECTOR)
    assert (caught.value.index, caught.value.size) == (4, "8 x 8, 3 channels")
    assert (caught.value.first, caught.value.first_size) == (0, "6 x 8, 3 channels")


@pytest.mark.parametrize("order", [(0, 4), (4, 0)])
def test_sizes_are_compared_in_any_order_of_arrival_from_records_alone(store: MemoryBlobStore, order: tuple[int, int]) -> None:
    results = {0: image_result(store, "c0", image(0)), 4: image_result(store, "c4", image(4, (1, 8, 6, 4)))}
    check = BatchCheck()
    check.add(order[0], results[order[0]])
    with pytest.raises(SizesDiffer) as caught:
        check.add(order[1], results[order[1]])
    assert (caught.value.first, caught.value.index) == (0, 4)


def test_two_collectors_may_have_two_sizes(store: MemoryBlobStore) -> None:
    captures = (capture(store, "c", "1", "images", image(0)), capture(store, "c", "2", "images", image(0, (1, 4, 4, 3))))
    check = BatchCheck()
    check.add(0, ItemResult(captures=captures))
    check.add(1, ItemResult(captures=captures))


def test_something_else_than_images_is_refused_by_name(spool: Spool, store: MemoryBlobStore) -> None:
    add(spool, store, 0, ItemResult(captures=(Capture(COLLECTOR, "images", 0, LiteralValue("a text")),)))
    with pytest.raises(PictureUnsavable) as caught:
        list(collected_images(spool, COLLECTOR))
    assert "a text" in str(caught.value)


def test_audio_is_joined_along_samples_in_item_order(spool: Spool, store: MemoryBlobStore) -> None:
    tracks = {index: audio(index, samples=5 + index) for index in range(3)}
    for index in (1, 2, 0):
        add(spool, store, index, ItemResult(captures=(capture(store, f"c{index}", COLLECTOR, "audio", tracks[index]),)))
    joined = joined_audio(spool, COLLECTOR)
    assert joined.sample_rate == 44_100
    assert joined.waveform.tobytes() == np.concatenate([tracks[index]["waveform"] for index in range(3)], axis=-1).tobytes()


def test_without_audio_there_is_one_silent_stereo_sample(spool: Spool, store: MemoryBlobStore) -> None:
    add(spool, store, 0, image_result(store, "c0", image(0)))
    joined = joined_audio(spool, COLLECTOR)
    assert (joined.waveform.shape, joined.sample_rate, joined.waveform.any()) == ((1, 2, 1), 44_100, False)


@pytest.mark.parametrize("other", [{"sample_rate": 48_000}, {"waveform": np.zeros((1, 1, 9), np.float32)}, {"sample_rate": "fast"}])
def test_audio_of_another_format_names_both_items(spool: Spool, store: MemoryBlobStore, other: dict[str, object]) -> None:
    add(spool, store, 0, ItemResult(captures=(capture(store, "c0", COLLECTOR, "audio", audio(0)),)))
    add(spool, store, 1, ItemResult(captures=(capture(store, "c1", COLLECTOR, "audio", {**audio(1), **other}),)))
    with pytest.raises(AudioDiffers) as caught:
        joined_audio(spool, COLLECTOR)
    assert (caught.value.index, caught.value.first, caught.value.first_format) == (1, 0, "2 channels at 44100 Hz")


def test_edges_are_item_0s_values(spool: Spool, store: MemoryBlobStore) -> None:
    latent = {"samples": image(3, (1, 4, 2, 2)), "name": "x"}
    values = [latent, 7]
    captures = tuple(capture(store, "c0", EDGE, "value", value, list_index=position) for position, value in enumerate(values))
    add(spool, store, 0, ItemResult(captures=captures[::-1]))
    add(spool, store, 1, ItemResult(captures=(capture(store, "c1", EDGE, "value", 8),)))
    found = edge_values(spool, EDGE)
    assert np.array_equal(found[0]["samples"], latent["samples"])
    assert (found[0]["name"], found[1:]) == ("x", [7])
    assert len(placed_values(spool, EDGE, "value")) == 3
