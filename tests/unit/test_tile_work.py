"""The master's part of an upscale against a table and blobs in memory: order, losses, bounds, and what is refused."""
from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distributed_comfy.collector import tile_canvas
from distributed_comfy.collector.tile_work import TileLimits
from distributed_comfy.errors import MessageVersionUnknown, OutputUnwritable, UpscaleImageUnusable
from distributed_comfy.messages import ItemResult, JobRecord
from tests.collected_jobs import COLLECTOR, JOB_ID, capture
from tests.tile_jobs import HINT, PIXELS, UPSCALE, Studio, expected, picture, put_together, refined, tile_job
from tiler.plan import PLAN_VERSION

MODES = ["linear", "chess", "independent"]
LARGE = picture(height=300, width=330)
"""Enough tiles for items of several sizes, which wait for each other."""
Stage = Callable[..., Studio]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Makes jobs whose image is there and whose tiles are planned."""

    def make(job: JobRecord | None = None, image: NDArray[np.float32] | None = None, **options: Any) -> Studio:
        hint = options.pop("hint", None)
        studio = Studio(job or tile_job(), tmp_path / f"spool{len(list(tmp_path.iterdir()))}", **options)
        studio.give_image(picture() if image is None else image, hint=hint)
        studio.begin()
        return studio

    return make


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.randoms(use_true_random=False), workers=st.integers(1, 5), together=st.booleans())
def test_any_order_any_restart_and_doubles_give_the_same_canvas(
    stage: Stage, mode: str, order: Any, workers: int, together: bool
) -> None:
    job = tile_job(mode=mode, seam_fix="half_tile" if workers % 2 else "none")
    with pytest.MonkeyPatch.context() as patch:
        if together:
            put_together(patch)
        image = LARGE if together else picture()
        studio = stage(job, image, workers=workers)
        sizes = {len(numbers) for numbers in studio.planned}
        assert sizes == {1} if not together else len(sizes) > 1 and len(studio.planned) > 4
        _draw_in_any_order(studio, order, image)


def _draw_in_any_order(studio: Studio, order: Any, image: NDArray[np.float32]) -> None:
    drawn: list[int] = []
    while not studio.work.done:
        if order.random() < 0.2:
            studio.restart()
            drawn = [index for index in drawn if not studio.spool.has(index)]
        pending = studio.pending()
        if drawn and (not pending or order.random() < 0.5):
            index = drawn.pop(order.randrange(len(drawn)))
            studio.fetch(index)
            for _ in range(order.choice([1, 1, 2])):
                studio.work.take(index)
            studio.work.go_on()
        else:
            drawn.append(order.choice(pending))
            studio.draw(drawn[-1])
    assert studio.work.canvas.tobytes() == expected(studio.job, image).tobytes()


def test_each_tile_runs_once_and_its_crop_goes_when_it_is_here(stage: Stage) -> None:
    studio = stage()
    assert len(studio.pending()) == 1, "the second tile sees the first one refined"
    studio.finish()
    assert studio.claims == len(studio.tiles) == 6
    assert not [blob for blob in studio.store._blobs if ":crop:" in blob]


def test_no_more_crops_than_two_per_worker_lie_ready(stage: Stage) -> None:
    studio = stage(tile_job(mode="independent"), workers=2)
    assert len(studio.pending()) == 4
    studio.workers = 100
    studio.work.go_on()
    assert studio.pending() == list(studio.tiles)


def test_large_crops_lie_ready_for_each_worker_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TileLimits, "__init__", _with_little_room(TileLimits.__init__))
    assert len(stage(tile_job(mode="independent"), workers=2).pending()) == 2


def _with_little_room(init: Any) -> Any:
    return lambda self, **options: init(self, crop_bytes=1, **options)


@pytest.mark.parametrize("channels", [3, 4])
def test_frames_are_split_by_memory_and_the_bytes_do_not_depend_on_it(stage: Stage, channels: int) -> None:
    clip = picture(frames=5, channels=channels)
    crop_bytes = 96 * 96 * 3 * 4
    split = stage(tile_job(item_bytes=2 * crop_bytes), clip, workers=3)
    assert split.work.items == 3 * 6, "groups of 1, 2 and 2 frames"
    assert isinstance(split.work.canvas, np.memmap)
    whole = stage(tile_job(), clip, workers=1)
    assert whole.work.items == 6
    alone = np.concatenate([expected(tile_job(), clip[at : at + 1]) for at in range(5)])
    assert split.finish().tobytes() == whole.finish().tobytes() == alone.tobytes()
    assert channels == 3 or np.array_equal(split.work.canvas[..., 3], clip[..., 3])


def test_tiles_that_wait_for_one_before_them_hold_no_files_open(stage: Stage) -> None:
    """Only one tile of a row of 60 is slow; the others wait in the spool."""
    studio = stage(tile_job(mode="independent", padding=0, mask_blur=8), picture(height=8, width=64 * 60), workers=60)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for index in studio.tiles[1:]:
        studio.draw(index)
        studio.fetch(index)
        studio.work.take(index)
    after = len(os.listdir("/proc/self/fd")) if before else 0
    assert after - before < 20
    assert studio.finish().tobytes() == expected(studio.job, picture(height=8, width=64 * 60)).tobytes()


@pytest.mark.parametrize(("offered_bytes", "order"), [(1, "pupupupu"), (2**20, "ppppu"), (2 * 96 * 8 * 12, "ppuppu")])
def test_items_start_before_the_crops_of_all_are_stored(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, offered_bytes: int, order: str
) -> None:
    studio = stage(tile_job(mode="independent", item_pixels=0), picture(height=8, width=64 * 20), workers=1)
    calls: list[str] = []
    put, unblock = studio.store.put, studio.table.unblock
    monkeypatch.setattr("distributed_comfy.collector.tile_work._OFFERED_BYTES", offered_bytes)
    monkeypatch.setattr(studio.store, "put", lambda *args, **options: calls.append("p") or put(*args, **options))
    monkeypatch.setattr(studio.table, "unblock", lambda *args: calls.append("u") or unblock(*args))
    studio.workers = 3
    studio.work.go_on()
    assert "".join(calls) == order


# -- several tiles in one item ------------------------------------------------------------------------------------------
TILE_PIXELS = 96 * 96


def test_small_tiles_of_a_level_are_one_item_with_a_crop_for_each(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    put_together(monkeypatch)
    studio = stage(tile_job(mode="independent", item_pixels=4 * TILE_PIXELS), workers=2)
    assert studio.planned == [(0, 1, 2, 3), (4, 5)]
    assert [len(studio.feed(index)[PIXELS]) for index in studio.pending()] == [4, 2]
    assert studio.finish().tobytes() == expected(studio.job, picture()).tobytes()
    assert studio.claims == 2
    assert not [blob for blob in studio.store._blobs if ":crop:" in blob]


def test_a_level_is_not_put_together_at_the_price_of_idle_workers(stage: Stage) -> None:
    assert stage(tile_job(mode="independent")).planned == [(0,), (1,), (2,), (3,), (4,), (5,)]
    studio = stage(tile_job(mode="independent", padding=0), picture(height=8, width=64 * 20), workers=9)
    assert studio.planned == [(at, at + 1) for at in range(0, 20, 2)]


@pytest.mark.parametrize(("frames", "item_bytes", "sizes"), [
    (1, 2**28, [6]), (2, 2**28, [3, 3]), (7, 2**28, [1] * 6), (1, TILE_PIXELS * 12 * 2, [2, 2, 2]),
])  # fmt: skip
def test_all_frames_of_all_tiles_count(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, frames: int, item_bytes: int, sizes: list[int]
) -> None:
    put_together(monkeypatch)
    studio = stage(tile_job(mode="independent", item_bytes=item_bytes), picture(frames=frames))
    assert [len(numbers) for numbers in studio.planned] == sizes
    assert studio.finish().tobytes() == expected(studio.job, picture(frames=frames)).tobytes()


def test_the_tiles_of_the_second_group_of_frames_have_numbers_of_their_own(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    put_together(monkeypatch)
    largest = 96 * 80 * 12
    studio = stage(tile_job(mode="independent", uniform=False, item_bytes=3 * largest), picture(frames=4))
    assert studio.planned == [(at, at + 1) for at in range(0, 12, 2)], "two tiles of two frames each"
    assert studio.finish().tobytes() == expected(studio.job, picture(frames=4)).tobytes()


def test_the_limits_of_an_item_are_those_of_the_record(stage: Stage) -> None:
    job = tile_job(mode="independent")
    assert job.tiles is not None
    few, most = replace(job.tiles, level_shares=1, item_tiles=2), replace(job.tiles, level_shares=2)
    assert stage(replace(job, tiles=few)).planned == [(0, 1), (2, 3), (4, 5)]
    assert stage(replace(job, tiles=most)).planned == [(0, 1, 2), (3, 4, 5)]


def test_a_job_that_another_version_plans_otherwise_is_refused(stage: Stage) -> None:
    job = tile_job()
    assert job.tiles is not None
    with pytest.raises(MessageVersionUnknown, match=rf"a TilePlan of version 0 cannot be read here .known: .{PLAN_VERSION}"):
        stage(replace(job, tiles=replace(job.tiles, plan_version=0)))


def test_crops_of_an_item_that_the_blob_store_lost_are_put_back(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    put_together(monkeypatch)
    studio = stage(tile_job(mode="independent"))
    (index,) = studio.pending()
    before = studio.feed(index)[PIXELS]
    studio.store.unlink([blob for blob in studio.store._blobs if ":crop:0.3" in blob])
    studio.work.ensure()
    assert all(np.array_equal(one, other) for one, other in zip(studio.feed(index)[PIXELS], before, strict=True))


def test_a_started_item_of_several_tiles_is_fed_again_by_a_new_collector(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    put_together(monkeypatch)
    studio = stage(tile_job(mode="chess"), LARGE, workers=2)
    started, drawn = studio.pending()
    before = studio.feed(started)[PIXELS]
    studio.draw(drawn)
    studio.fetch(drawn)
    studio.store.drop_job(JOB_ID)
    studio.restart()
    assert started in studio.pending() and len(before) == len(studio.planned[0]) == 7
    assert all(np.array_equal(one, other) for one, other in zip(studio.feed(started)[PIXELS], before, strict=True))
    assert studio.finish().tobytes() == expected(studio.job, LARGE).tobytes()


def test_an_item_with_an_image_too_few_is_refused_with_both_numbers(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    put_together(monkeypatch)
    studio = stage(tile_job(mode="independent"))
    index = studio.pending()[0]
    assert studio.table.claim(index, "t", "w1")
    images = capture(studio.store, "t", UPSCALE, "images", refined(studio.feed(index)[PIXELS][0]))
    assert studio.table.complete(index, "t", ItemResult(captures=(images,), worker="w1"))
    studio.fetch(index)
    with pytest.raises(UpscaleImageUnusable, match=rf"item {index} of worker w1 came back with 1 image\(s\), it has 6 tile\(s\)"):
        studio.work.take(index)


def test_a_tile_that_a_node_blocked_is_refused_with_the_cause(stage: Stage) -> None:
    studio = stage()
    index = studio.pending()[0]
    assert studio.table.claim(index, "t", "w1") and studio.table.complete(index, "t", ItemResult(blocked=(UPSCALE,), worker="w1"))
    studio.fetch(index)
    with pytest.raises(UpscaleImageUnusable, match=rf"0 image\(s\), it has 1 tile\(s\); nothing reached {UPSCALE}: a node before it"):
        studio.work.take(index)


def test_of_several_tiles_the_one_that_does_not_fit_is_named(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    put_together(monkeypatch)
    studio = stage(tile_job(mode="independent", item_pixels=3 * TILE_PIXELS))
    drawn: list[int] = []

    def change(crop: NDArray[np.float32]) -> NDArray[np.float32]:
        drawn.append(len(drawn))
        return crop[:, :-8] if drawn[-1] == 1 else crop

    studio.draw(studio.tiles[1], change)
    studio.fetch(studio.tiles[1])
    with pytest.raises(UpscaleImageUnusable, match=rf"item {studio.tiles[1]} of worker w1: tile 4 came back as"):
        studio.work.take(studio.tiles[1])
        studio.finish()


# -- losses -------------------------------------------------------------------------------------------------------------
def test_crops_and_constants_that_the_blob_store_lost_are_put_back(stage: Stage) -> None:
    hint = {"samples": picture(seed=9), "kind": "depth"}
    studio = stage(tile_job(hint=True, mode="independent"), hint=hint)
    kept = dict(studio.store._blobs)
    for blob in list(studio.store._blobs):
        studio.store.unlink([blob])
        studio.work.ensure()
        if ":crop:" in blob or ":shared:" in blob:
            assert studio.store._blobs[blob][0] == kept[blob][0]
    found = studio.feed(studio.pending()[0])
    assert np.array_equal(found[HINT][0]["samples"], hint["samples"]) and found[HINT][0]["kind"] == "depth"
    assert found[PIXELS][0].shape == (1, 96, 96, 3)
    studio.store.drop_job(JOB_ID)
    studio.work.ensure()
    assert studio.finish().tobytes() == expected(studio.job, picture()).tobytes()


def test_a_crop_is_not_put_back_once_its_tile_is_here(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop takes a tile in just when the other thread found its crop gone."""
    studio = stage(tile_job(mode="independent"))
    index = studio.pending()[0]
    studio.draw(index)
    studio.fetch(index)
    studio.store.unlink([blob for blob in studio.store._blobs if ":crop:0" in blob])
    exists, taking = studio.store.exists, threading.Thread(target=studio.work.take, args=(index,))

    def slow(blobs: Any) -> list[bool]:
        found = exists(blobs)
        if any(":crop:0" in blob for blob in blobs) and not taking.is_alive():
            taking.start()
            taking.join(0.05)
        return found

    monkeypatch.setattr(studio.store, "exists", slow)
    studio.work.ensure()
    taking.join()
    assert not [blob for blob in studio.store._blobs if ":crop:0" in blob]


def test_a_table_that_forgot_is_told_again(stage: Stage) -> None:
    studio = stage(tile_job(mode="independent"))
    first = studio.pending()[0]
    studio.table.forget(first)
    assert first not in studio.pending()
    studio.work.look(studio.table.item_states(JOB_ID))
    assert first in studio.pending()
    lost = studio.tiles[-1]
    del studio.table._rows[lost]
    studio.table._grows = True
    studio.work.look(studio.table.item_states(JOB_ID))
    assert studio.table.item_states(JOB_ID)[lost].state == "blocked"
    assert studio.finish().tobytes() == expected(studio.job, picture()).tobytes()


def test_a_new_collector_puts_the_crops_back_that_workers_wait_for(stage: Stage) -> None:
    """More than it would cut ahead itself: there were more workers before."""
    studio = stage(tile_job(mode="independent"), workers=3)
    assert len(studio.pending()) == 6
    studio.store.drop_job(JOB_ID)
    studio.workers = 1
    studio.restart()
    assert all(studio.feed(index)[PIXELS] for index in studio.pending())
    assert len(studio.pending()) == 6


def test_after_a_restart_no_crop_is_cut_twice(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one would show what its neighbours became since."""
    studio = stage(workers=3)
    first = studio.tiles[0]
    studio.draw(first)
    studio.fetch(first)
    for index in studio.tiles:
        del studio.table._rows[index]
    studio.table._grows = True
    stored: list[str] = []
    put = studio.store.put
    monkeypatch.setattr(studio.store, "put", lambda name, pieces, **facts: stored.append(name) or put(name, pieces, **facts))
    studio.restart()
    studio.finish()
    crops = [name for name in stored if ":crop:" in name]
    assert sorted(crops) == sorted(set(crops)) and len(crops) == 5


def test_a_resumed_job_enters_its_spooled_tiles_as_done(stage: Stage) -> None:
    studio = stage()
    for _ in range(3):
        index = studio.pending()[0]
        studio.draw(index)
        studio.fetch(index)
        studio.work.take(index)
        studio.work.go_on()
    for index in studio.tiles:
        del studio.table._rows[index]
    studio.table._grows = True
    studio.restart()
    assert [item.state for item in studio.table.item_states(JOB_ID).values()][2:] == ["done"] * 3 + ["pending"] + ["blocked"] * 2
    assert studio.finish().tobytes() == expected(studio.job, picture()).tobytes()


# -- what is refused ----------------------------------------------------------------------------------------------------
def refusal(stage: Stage, job: JobRecord, image: NDArray[np.float32]) -> str:
    with pytest.raises(UpscaleImageUnusable) as caught:
        stage(job, image)
    assert caught.value.node_id == "up"
    return str(caught.value)


def test_an_image_that_cannot_be_tiled_is_refused_with_node_and_place(stage: Stage) -> None:
    broken = picture(frames=4)
    broken[2, 5, 7, 1] = np.nan
    one_frame = 96 * 96 * 3 * 4
    assert "frame 2 of its image (item 0) has NaN" in refusal(stage, tile_job(item_bytes=one_frame), broken)
    assert "DC_TILE_ITEM_BYTES" in refusal(stage, tile_job(item_bytes=one_frame - 1), picture())
    assert "no images" in refusal(stage, tile_job(), picture(frames=0))
    assert "1 channel(s)" in refusal(stage, tile_job(), picture(channels=1))


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (3, 64), (64, 64), (65, 129)])
def test_small_and_odd_images_are_upscaled(stage: Stage, size: tuple[int, int]) -> None:
    image = picture(height=size[0], width=size[1])
    studio = stage(tile_job(), image)
    assert studio.finish().tobytes() == expected(studio.job, image).tobytes()


@pytest.mark.parametrize(("change", "words"), [
    (lambda crop: crop[:, :-8], "came back as float32 [1, 88, 96, 3], it must be float32 [1, 96, 96, 3]"),
    (lambda crop: crop * np.float32(np.nan), "NaN or infinite"),
    (lambda crop: crop[..., :1], "came back as float32 [1, 96, 96, 1]"),
])  # fmt: skip
def test_a_tile_that_does_not_fit_is_refused_with_item_and_worker(stage: Stage, change: Any, words: str) -> None:
    studio = stage()
    index = studio.pending()[0]
    studio.draw(index, change)
    studio.fetch(index)
    with pytest.raises(UpscaleImageUnusable, match=f"item {index} of worker w1") as caught:
        studio.work.take(index)
    assert words in str(caught.value)


def test_items_of_different_sizes_are_refused_with_both(tmp_path: Path) -> None:
    studio = Studio(tile_job(items=2), tmp_path / "spool")
    for index, width in enumerate((150, 151)):
        images = capture(studio.store, f"c{index}", COLLECTOR, "images", picture(width=width))
        studio.give(index, ItemResult(captures=(images,)))
    with pytest.raises(UpscaleImageUnusable, match=r"item 1 has images of shape \[96, 151, 3\], item 0 of \[96, 150, 3\]"):
        studio.begin()


def test_a_full_disk_is_told_and_leaves_nothing(stage: Stage, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    studio = Studio(tile_job(), tmp_path / "spool")
    studio.give_image(picture())
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputUnwritable, match="larger than this system allows; free space there or choose another folder"):
            studio.begin()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not (tmp_path / "spool" / tile_canvas.CANVAS).exists()
    studio.begin()
    assert studio.finish().tobytes() == expected(studio.job, picture()).tobytes()


def test_a_disk_that_cannot_reserve_is_written_instead(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: int) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refused, raising=False)
    studio = stage()
    assert (studio.folder / tile_canvas.CANVAS).stat().st_blocks * 512 >= 96 * 150 * 3 * 4
    assert studio.finish().tobytes() == expected(studio.job, picture()).tobytes()


# -- what is shown ------------------------------------------------------------------------------------------------------
def test_the_canvas_is_shown_small_once_a_second_and_at_its_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distributed_comfy.collector.tile_work.time.monotonic", lambda: 0.0)
    image = picture(height=8, width=1400)
    studio = stage(tile_job(padding=0), image)
    canvas = studio.finish()
    assert [preview.shape for preview in studio.previews] == [(3, 467, 3)] * 2, "the first tile's, and the end"
    assert studio.previews[-1].dtype == np.uint8
    assert np.array_equal(studio.previews[-1], np.rint(np.clip(canvas[0, ::3, ::3], 0, 1) * 255).astype(np.uint8))


@pytest.mark.parametrize(("on_missing", "order"), [("drop", [0, 2]), ("repeat", [0, 0, 2])])
def test_what_a_collector_does_without_is_left_out_or_repeated(tmp_path: Path, on_missing: str, order: list[int]) -> None:
    studio = Studio(tile_job(items=3, on_missing=on_missing), tmp_path / "spool")
    for index in (0, 2):
        images = capture(studio.store, f"c{index}", COLLECTOR, "images", picture(seed=index))
        studio.give(index, ItemResult(captures=(images,)))
    studio.begin()
    clip = np.concatenate([picture(seed=index) for index in order])
    assert studio.finish().tobytes() == expected(studio.job, clip).tobytes()
