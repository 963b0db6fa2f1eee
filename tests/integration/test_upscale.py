"""A tiled upscale through the cluster: the same bytes whoever made the tiles, with workers and masters killed on the way."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

from distributed_comfy.collector.spool import SPOOL_FOLDER
from distributed_comfy.errors import JobCancelled, JobFailed, SizesDiffer, UpscaleImageUnusable
from distributed_comfy.messages import Prompt
from distributed_comfy.orchestrator.run import SilentReporter, attach
from tests.cluster_rig import JobReport, Rig
from tests.command_line import CommandLine, pixels, until
from tests.prompts import node, out
from tests.tile_jobs import put_apart, put_together

pytestmark = pytest.mark.redis

SIDE, TILE, PADDING, FEATHER = 256, 96, 16, 8
TILES = 9


def upscale(image: Any, **inputs: Any) -> dict[str, Any]:
    text = out("model", 1)
    links = {"upscaled_image": image, "model": out("model"), "positive": text, "negative": text, "vae": out("model", 2)}
    widgets = {
        "seed": 3, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.4, "tile_width": TILE,
        "tile_height": TILE, "padding": PADDING, "mask_blur": FEATHER, "force_uniform_tiles": True, "tiled_decode": False,
    }  # fmt: skip
    return node("UltimateSDUpscaleDistributed", **{**links, **widgets, **inputs})


def picture(batch_size: int = 1, channels: int = 3, **inputs: Any) -> Prompt:
    """A picture in tiles, and what a node behind the upscale is given."""
    return {
        "make": node("RuleImage", seed=5, width=SIDE, height=SIDE, batch_size=batch_size, channels=channels)
        if channels != 3
        else node("SeededGenerator", seed=5, steps=2, width=SIDE, height=SIDE, batch_size=batch_size, style="auto"),
        "model": node("SeededModel", edges=0.8, strokes=0.6),
        "up": upscale(out("make"), **inputs),
        "save": node("SaveImage", images=out("up"), filename_prefix="after"),
    }


SLOW = {"steps": 75}
"""Tiles that take long enough to be disturbed."""
CANCELLED_S = 2.0
"""How long a cancel may take."""


def after(report: JobReport) -> list[NDArray[Any]]:
    return [pixels(path) for path in sorted(file.path for file in report.done.files if file.ref.name.startswith("after"))]


@pytest.fixture(scope="module")
def undisturbed(builtin_rig: Rig) -> list[NDArray[Any]]:
    """What slow tiles become when nothing happens to them."""
    return after(builtin_rig.run(picture(**SLOW)))


def only(rig: Rig, *names: str) -> None:
    for name in rig.workers:
        rig.cluster.jobs.drain(name, drained=name not in names)


@pytest.mark.parametrize("mode", ["linear", "chess", "independent"])
def test_one_worker_and_two_give_the_same_bytes(builtin_rig: Rig, mode: str) -> None:
    both = builtin_rig.run(picture(mode=mode))
    names = sorted(builtin_rig.workers)
    only(builtin_rig, names[0])
    try:
        one = builtin_rig.run(picture(mode=mode))
    finally:
        only(builtin_rig, *names)
    assert numpy.array_equal(after(both)[0], after(one)[0]) and after(both)[0].std() > 10
    assert {result.worker for result in one.done.results.values()} == {names[0]}
    assert {result.worker for result in both.done.results.values()} == set(names), "tiles ran on both"
    assert len(builtin_rig.executions(both.job_id)) == 1 + TILES + 1


def test_the_result_is_the_image_where_nothing_is_redrawn(builtin_rig: Rig) -> None:
    """At denoise 0 the refiner hands back what it got, so only cutting, transport and blending are left."""
    prompt = picture(batch_size=2, denoise=0.0, seam_fix="half_tile", seam_fix_denoise=0.0)
    prompt["before"] = node("SaveImage", images=out("make"), filename_prefix="before")
    report = builtin_rig.run(prompt)
    before = [pixels(path) for path in sorted(file.path for file in report.done.files if file.ref.name.startswith("before"))]
    assert len(before) == 2
    assert all(numpy.array_equal(one, other) for one, other in zip(before, after(report), strict=True))


def test_a_killed_worker_changes_no_byte(builtin_rig: Rig, undisturbed: list[NDArray[Any]]) -> None:
    (extra,) = builtin_rig.start("third", lease_ttl_s=2)
    job = builtin_rig.begin(picture(**SLOW))
    job.until(lambda: draws_a_tile(builtin_rig, job.queued(), "third"))
    extra.kill()
    del builtin_rig.workers["third"]
    report = job.wait()
    assert numpy.array_equal(after(report)[0], undisturbed[0])
    assert len(builtin_rig.executions(report.job_id)) == 1 + TILES + 1 + 1, "only the tile that died with it ran again"


def test_a_state_server_that_forgets_that_a_tile_is_done_changes_no_byte(builtin_rig: Rig, undisturbed: list[NDArray[Any]]) -> None:
    """What a crash within a second of the tile's end leaves: it is pending, and its crop is gone."""
    job = builtin_rig.begin(picture(**SLOW))
    job.until(lambda: any(index >= 2 for index in job.report.arrived))
    table, job_id = builtin_rig.cluster.jobs, job.queued()
    index = next(index for index in job.report.arrived if index >= 2)
    assert table.reopen(job_id, index, table.item_states(job_id)[index].claim_id)
    table.unblock(job_id, [(index, table.feed(job_id, index))])
    job.until(lambda: table.item_states(job_id)[index].state == "done", timeout_s=30)
    assert numpy.array_equal(after(job.wait())[0], undisturbed[0])
    begun = [number for number, _, _ in builtin_rig.executions(job_id)]
    assert sorted(set(begun)) == list(range(2 + TILES)) and len(begun) <= 3 + TILES


def draws_a_tile(rig: Rig, job_id: str, worker: str, among: Collection[int] = range(2, 1000)) -> bool:
    """Whether the worker's engine has begun with an item of tiles, one of these, that is not done."""
    begun = {claim_id for _, claim_id, _ in rig.executions(job_id)}
    items = rig.cluster.jobs.item_states(job_id)
    return any(
        index in among and state.worker == worker and state.state == "running" and state.claim_id in begun
        for index, state in items.items()
    )


def test_a_master_that_dies_goes_on_at_the_first_missing_tile(
    builtin_rig: Rig, undisturbed: list[NDArray[Any]], tmp_path: Path
) -> None:
    cluster = builtin_rig.cluster
    line = CommandLine(tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX=cluster.settings.key_prefix)
    line.write("graph.json", picture(**SLOW))

    def start() -> subprocess.Popen[str]:
        return line.start("run", "graph.json", "--out", "made", "--json")

    process = start()
    folder = line.folder / "made" / SPOOL_FOLDER
    until(lambda: len(list(folder.glob("*/items/*.json"))) >= 4)
    os.kill(process.pid, signal.SIGKILL)
    line.finish(process)
    done = line.finish(start())
    assert done.status == 0, done.err
    assert f"goes on with job {done.json['job']}, " in done.err
    told = re.search(rf"^upscale: {TILES} tiles, (\d) here already$", done.err, re.MULTILINE)
    assert told and len(re.findall(rf"^  \d/{TILES}  tile ", done.err, re.MULTILINE)) == TILES - int(told[1]) < TILES
    shown = line.run("jobs", "show", done.json["job"])
    assert f"{TILES} items of tiles: {TILES} done (--items lists all)" in shown.out and "(tile)" not in shown.out
    assert line.run("jobs", "show", done.json["job"], "--items").out.count("(tile)") == TILES
    executed = [index for index, *_ in builtin_rig.executions(done.json["job"])]
    assert len(executed) == len(set(executed)) == len(done.json["items"]), "what its workers had goes on"
    assert numpy.array_equal(pixels(line.folder / "made" / "after_00001_.png"), undisturbed[0])


def test_alpha_stays_as_it_is_and_one_channel_is_refused(builtin_rig: Rig) -> None:
    prompt = picture(channels=4)
    prompt["before"] = node("SaveImage", images=out("make"), filename_prefix="before")
    report = builtin_rig.run(prompt)
    (before,) = (pixels(file.path) for file in report.done.files if file.ref.name.startswith("before"))
    assert after(report)[0].shape == (SIDE, SIDE, 4) and numpy.array_equal(after(report)[0][..., 3], before[..., 3])
    job = builtin_rig.begin(picture(channels=1))
    assert isinstance(job.wait().error, UpscaleImageUnusable)
    assert "1 channel" in str(job.report.error)


@pytest.mark.parametrize(("changes", "words"), [
    ({"broken": node("RuleBroken", images=out("make"))}, "frame 1 of its image (item 0) has NaN or infinite pixels"),
    ({"make": node("RuleImage", seed=5, width=16, height=16, batch_size=0, channels=3)}, "a batch of no images"),
])  # fmt: skip
def test_an_image_that_cannot_be_tiled_is_refused_with_its_node_before_any_tile(builtin_rig: Rig, changes: Prompt, words: str) -> None:
    prompt = {**picture(batch_size=2), **changes}
    prompt["up"]["inputs"]["upscaled_image"] = out("broken" if "broken" in changes else "make")
    report = builtin_rig.run(prompt)
    assert isinstance(report.error, UpscaleImageUnusable) and report.error.node_id == "up" and words in str(report.error)
    assert [index for index, *_ in builtin_rig.executions(report.job_id)] == [0]


def test_images_of_two_sizes_are_refused_before_any_tile(builtin_rig: Rig) -> None:
    prompt = picture()
    prompt["seed"] = node("DistributedSeed", seed=4)
    prompt["make"] = node("RuleImage", seed=out("seed"), width=16, height=16, batch_size=1, channels=3, grow=8)
    prompt["collect"] = node("DistributedCollector", images=out("make"), load_balance=False)
    prompt["up"]["inputs"]["upscaled_image"] = out("collect")
    report = builtin_rig.run(prompt, items=2)
    assert isinstance(report.error, SizesDiffer) and "24 x 16" in str(report.error) and "16 x 16" in str(report.error)
    assert {index for index, *_ in builtin_rig.executions(report.job_id)} == {0, 1}


def test_a_model_that_changes_the_size_ends_the_job_with_item_and_worker(builtin_rig: Rig) -> None:
    prompt = picture()
    prompt["odd"] = node("RuleNarrowVae", vae=out("model", 2))
    prompt["up"]["inputs"]["vae"] = out("odd")
    error = builtin_rig.run(prompt).error
    assert isinstance(error, UpscaleImageUnusable) and error.node_id == "up"
    assert "came back as float32 [1, 128, 120, 3], it must be float32 [1, 128, 128, 3]" in str(error)
    assert any(f"of worker {name}" in str(error) for name in builtin_rig.workers)


@pytest.mark.parametrize(("side", "inputs"), [(1, {}), (100, {"tile_width": 64, "tile_height": 64, "padding": 256, "denoise": 1.0})])
def test_a_single_pixel_and_more_padding_than_tile_are_upscaled(builtin_rig: Rig, side: int, inputs: dict[str, Any]) -> None:
    prompt = picture(**inputs)
    prompt["scale"] = node("ImageScale", image=out("make"), upscale_method="bilinear", width=side, height=side, crop="disabled")
    prompt["up"]["inputs"]["upscaled_image"] = out("scale")
    prompt["before"] = node("SaveImage", images=out("scale"), filename_prefix="before")
    report = builtin_rig.run(prompt)
    (image,), (before,) = after(report), (pixels(file.path) for file in report.done.files if file.ref.name.startswith("before"))
    assert image.shape == (side, side, 3) and (side == 1 or (image != before).mean() > 0.5)


def test_a_batch_from_a_collector_is_upscaled_in_order(builtin_rig: Rig) -> None:
    prompt = picture()
    prompt["seed"] = node("DistributedSeed", seed=2**40)
    prompt["make"]["inputs"]["seed"] = out("seed")
    prompt["collect"] = node("DistributedCollector", images=out("make"), load_balance=False)
    prompt["scale"] = node("ImageScale", image=out("collect"), upscale_method="nearest-exact", width=SIDE, height=SIDE, crop="disabled")
    prompt["up"]["inputs"] |= {"upscaled_image": out("scale"), "denoise": 0.0}
    report = builtin_rig.run(prompt, items=3)
    assert len(after(report)) == 3
    kinds = [spec.kind for spec in builtin_rig.cluster.jobs.specs(report.job_id).values()]
    assert kinds == ["generate"] * 3 + ["prepare", "last"] + ["tile"] * TILES


def test_a_collector_behind_the_upscale_passes_the_canvas_on(builtin_rig: Rig) -> None:
    prompt = picture()
    prompt["collect"] = node("DistributedCollector", images=out("up"), load_balance=False)
    prompt["save"]["inputs"]["images"] = out("collect")
    report = builtin_rig.run(prompt)
    assert numpy.array_equal(after(report)[0], after(builtin_rig.run(picture()))[0])
    assert report.start and any("collect" in warning and "passes its images through" in warning for warning in report.start.warnings)


# -- several tiles in one item ------------------------------------------------------------------------------------------
SMALL = {"tile_width": 64, "tile_height": 64, "tile_seeds": "offset", "seam_fix": "half_tile", "seam_fix_denoise": 0.3}


@pytest.mark.parametrize("mode", ["linear", "chess", "independent"])
def test_tiles_that_share_an_item_have_the_bytes_that_each_has_alone(
    builtin_rig: Rig, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    put_apart(monkeypatch)
    alone = builtin_rig.run(picture(mode=mode, **SMALL))
    put_together(monkeypatch)
    together = builtin_rig.run(picture(mode=mode, **SMALL))
    assert {len(numbers) for numbers in alone.planned} == {1}
    assert max(len(numbers) for numbers in together.planned) == {"linear": 2, "chess": 4, "independent": 7}[mode]
    assert_same_tiles(together.tiles("up"), alone.tiles("up"))
    assert numpy.array_equal(after(together)[0], after(alone)[0])


def assert_same_tiles(tiles: dict[int, NDArray[Any]], others: dict[int, NDArray[Any]]) -> None:
    assert set(tiles) == set(others) and len(tiles) > 1
    assert all(tiles[number].tobytes() == others[number].tobytes() for number in tiles)


def test_a_worker_that_dies_with_several_tiles_changes_no_byte(builtin_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    put_together(monkeypatch)
    undisturbed = builtin_rig.run(picture(**SMALL))
    (extra,) = builtin_rig.start("fourth", lease_ttl_s=2)
    job = builtin_rig.begin(picture(**{**SMALL, **SLOW}))
    job.until(lambda: job.report.planned)
    several = {2 + number for number, tiles in enumerate(job.report.planned) if len(tiles) > 1}
    job.until(lambda: draws_a_tile(builtin_rig, job.queued(), "fourth", several))
    extra.kill()
    del builtin_rig.workers["fourth"]
    report = job.wait()
    items = len(report.planned)
    assert items == len(undisturbed.planned) < len(report.tiles("up"))
    assert len(builtin_rig.executions(report.job_id)) == 1 + items + 1 + 1, "only the item that died with it ran again"
    assert_same_tiles(report.tiles("up"), builtin_rig.run(picture(**{**SMALL, **SLOW})).tiles("up"))


@pytest.mark.parametrize("groups", [2, 3])
def test_frames_in_groups_have_the_bytes_of_the_whole_clip(builtin_rig: Rig, monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    """Each frame has its own noise, also where another item has those before it."""
    whole = builtin_rig.run(picture(batch_size=6))
    limit = 6 // groups * 128 * 128 * 3 * 4
    settings = builtin_rig.cluster.settings.model_copy(update={"tile_item_bytes": limit})
    monkeypatch.setattr(builtin_rig, "cluster", replace(builtin_rig.cluster, settings=settings))
    split = builtin_rig.run(picture(batch_size=6))
    assert len(split.planned) == groups * TILES
    tiles = split.tiles("up")
    joined = {step: numpy.concatenate([tiles[group * TILES + step] for group in range(groups)]) for step in range(TILES)}
    assert_same_tiles(joined, whole.tiles("up"))
    assert all(numpy.array_equal(one, other) for one, other in zip(after(split), after(whole), strict=True))


# -- what goes wrong ----------------------------------------------------------------------------------------------------
def test_a_cancel_in_mid_upscale_leaves_nothing_running_and_no_blob(builtin_rig: Rig) -> None:
    job = builtin_rig.begin(picture(**SLOW))
    job.until(lambda: sum(index >= 2 for index in job.report.arrived) >= 2)
    began = time.monotonic()
    builtin_rig.cluster.jobs.cancel(job.queued(), "enough")
    assert isinstance(job.wait().error, JobCancelled)
    builtin_rig.wait_idle()
    assert time.monotonic() - began < CANCELLED_S
    assert not list(builtin_rig.cluster.blob_client.scan_iter(f"*{job.report.job_id}*"))


def test_a_failed_tile_fails_the_job_and_after_a_retry_it_goes_on(builtin_rig: Rig, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.touch()
    prompt = picture()
    prompt["gate"] = node("RuleGate", model=out("model"), closed=str(closed))
    prompt["up"]["inputs"]["model"] = out("gate")
    report = builtin_rig.run(prompt)
    assert isinstance(report.error, JobFailed) and "the gate is closed" in str(report.error)
    assert report.error.index in (2, 3)  # the first two tiles are on two workers, and the one or the other meets the gate first
    closed.unlink()
    builtin_rig.cluster.jobs.retry(report.job_id)
    delivery = attach(builtin_rig.cluster, report.job_id, report.out, SilentReporter(), threading.Event())
    assert delivery.error is None
    (image,) = (pixels(file.path) for file in delivery.files if file.ref.name.startswith("after"))
    assert numpy.array_equal(image, after(builtin_rig.run(picture()))[0])


def test_a_blob_server_that_starts_empty_in_mid_upscale_changes_no_byte(builtin_rig: Rig, undisturbed: list[NDArray[Any]]) -> None:
    """What a restart of a server that keeps nothing on the disk does to it."""
    job = builtin_rig.begin(picture(**SLOW))
    job.until(lambda: sum(index >= 2 for index in job.report.arrived) >= 2)
    names = list(builtin_rig.cluster.blob_client.scan_iter(f"*{job.report.job_id}*"))
    assert names
    builtin_rig.cluster.blob_client.delete(*names)
    assert numpy.array_equal(after(job.wait())[0], undisturbed[0])


def test_a_job_of_one_device_class_leaves_workers_of_another_alone(builtin_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RULE_DEVICE_CLASS", "of another make")
    builtin_rig.start("other")
    try:
        mixed = builtin_rig.run(picture(mode="independent", **SLOW)).done
        alike = builtin_rig.run(picture(mode="independent", deterministic="same-class", **SLOW))
    finally:
        builtin_rig.stop("other")
    assert len({result.device_class for result in mixed.results.values()}) == 2
    (device_class,) = {result.device_class for result in alike.done.results.values()}
    assert "another make" not in device_class, "two of three workers are of this class"
    assert alike.start and any(device_class in warning for warning in alike.start.warnings)


def test_frames_are_split_into_items_and_the_canvas_is_shown(builtin_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, previews = builtin_rig.cluster, []
    small = cluster.settings.model_copy(update={"tile_item_bytes": 2**20})
    monkeypatch.setattr(builtin_rig, "cluster", replace(cluster, settings=small))
    monkeypatch.setattr(JobReport, "canvas", lambda self, preview: previews.append(preview))
    prompt = picture(batch_size=8, denoise=0.0)
    prompt["before"] = node("SaveImage", images=out("make"), filename_prefix="before")
    report = builtin_rig.run(prompt)
    assert sum(index >= 2 for index in report.arrived) == 2 * TILES, "a frame of a tile takes 200 kB"
    before = [pixels(path) for path in sorted(file.path for file in report.done.files if file.ref.name.startswith("before"))]
    assert len(before) == 8
    assert all(numpy.array_equal(one, other) for one, other in zip(before, after(report), strict=True))
    assert previews[-1].shape == (SIDE, SIDE, 3) and abs(previews[-1].astype(int) - before[0]).max() <= 1
