"""What an upscale costs beside the model: jobs whose tiles come back as they went, and the master's part of it by itself."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.nodes import pattern
from benchmarks.rig import BenchmarkFailed, Rig
from benchmarks.rows import Row, median, percentile, spread
from distributed_comfy.messages import ItemResult, Prompt
from distributed_comfy.orchestrator.delivery import Delivery
from distributed_comfy.orchestrator.run import JobStart, RunOptions, SilentReporter, run_on
from distributed_comfy.orchestrator.submit import SubmitOptions, read_prompt
from tiler.blender import Blender
from tiler.options import TileOptions
from tiler.plan import plan_tiles

LARGEST_S = 12.0
MOST_GROWTH = 20.0
MOST_MEMORY = 3.0
_FIRST_TILE = 2
"""Items of such a job before its tiles: the image, and what lies behind the upscale."""


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    sides: tuple[int, ...]
    """Of the square canvases, in pixels, the smallest first."""
    tile: int
    repeats: tuple[int, ...]
    """For each side."""
    chain: int
    """Tiles of a canvas of one column, where each tile waits for the one before."""


FULL = Sizes((2048, 4096, 8192), 512, (5, 3, 3), 64)
QUICK = Sizes((128, 256), 64, (1, 1), 4)


def rows(rig: Rig, workers: Sequence[str], sizes: Sizes) -> list[Row]:
    """Rows of the section; of the workers, the first one takes the chain alone."""
    found: dict[int, list[_Times]] = {side: [] for side in sizes.sides}
    for turn in range(max(sizes.repeats)):
        for side, repeats in zip(sizes.sides, sizes.repeats, strict=True):
            if turn < repeats:
                found[side].append(_upscaled(rig, side, side, sizes.tile))
    rig.use(workers[:1])
    chain = _chain(rig, sizes)
    return [*_growth_rows(found, sizes, len(workers)), *_memory_rows(found, sizes), *_chain_rows(chain), *_alone_rows(sizes)]


@dataclass
class _Times(SilentReporter):
    """One job, watched."""

    began: float = field(default_factory=time.monotonic)
    job_id: str = ""
    image_at: float = 0.0
    tiles_at: float = 0.0
    """When the last tile had come."""
    end_at: float = 0.0
    peak_bytes: int = 0
    canvas_bytes: int = 0
    on_tile: Callable[[int, str], None] = lambda index, job_id: None

    def submitted(self, start: JobStart) -> None:
        """See `Reporter`."""
        self.job_id = start.record.job_id

    def item_done(self, index: int, result: ItemResult) -> None:
        """See `Reporter`."""
        if index == 0:
            self.image_at = time.monotonic()
        elif index >= _FIRST_TILE:
            self.tiles_at = time.monotonic()
            self.on_tile(index, self.job_id)

    @property
    def tiles_s(self) -> float:
        """From the image to the last tile."""
        return self.tiles_at - self.image_at

    @property
    def saved_s(self) -> float:
        """From the image to the end of the job."""
        return self.end_at - self.image_at


def _upscaled(rig: Rig, width: int, height: int, tile: int, on_tile: Callable[[int, str], None] = lambda index, job_id: None) -> _Times:
    """A whole job of the cluster; every bit of its canvas is compared by the node behind it."""
    asked = SubmitOptions(user="benchmark")
    given = read_prompt(_prompt(width, height, tile), asked)
    _forget_peak()
    before = _resident_bytes()
    times = _Times(on_tile=on_tile, canvas_bytes=4 * 3 * width * height)
    delivery = run_on(rig.cluster, given, RunOptions(rig.folder / "out", asked), times)
    times.end_at = time.monotonic()
    times.peak_bytes = _peak_bytes() - before
    _check(delivery)
    return times


def _check(delivery: Delivery) -> None:
    if delivery.error is not None:
        raise BenchmarkFailed(f"an upscale failed: {delivery.error}")
    if delivery.results[1].outputs["5"]["same"] != [True]:
        raise BenchmarkFailed("an upscale that changes nothing has changed the image")


def _prompt(width: int, height: int, tile: int) -> Prompt:
    model = {"model": ["3", 0], "positive": ["3", 1], "negative": ["3", 1], "vae": ["3", 2]}
    sampler = {"seed": 3, "steps": 1, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.0}
    tiles = {"tile_width": tile, "tile_height": tile, "padding": 32, "mask_blur": 8, "force_uniform_tiles": True, "tiled_decode": False}
    upscale: dict[str, Any] = {"upscaled_image": ["1", 0], **model, **sampler, **tiles, "mode": "linear"}
    return {
        "1": {"class_type": "BenchImage", "inputs": {"seed": 0, "width": width, "height": height}},
        "3": {"class_type": "SeededModel", "inputs": {"edges": 0.8, "strokes": 0.6}},
        "4": {"class_type": "UltimateSDUpscaleDistributed", "inputs": upscale},
        "5": {"class_type": "BenchCheck", "inputs": {"image": ["4", 0], "seed": 0}},
    }


# -- memory of this process, which is the master
def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _resident_bytes() -> int:
    return _status_bytes("VmRSS")


def _peak_bytes() -> int:
    return _status_bytes("VmHWM")


# -- one tile after the other
def _chain(rig: Rig, sizes: Sizes) -> list[tuple[float, float]]:
    """(done -> claimable, done -> claimed by the idle worker) of each tile but the first, from the one before; seconds."""
    unblocked: dict[int, float] = {}
    events: dict[tuple[str, int], float] = {}
    jobs = rig.cluster.jobs
    keys = rig.keys

    class Watched:
        """The table, with a look at the clock."""

        def __getattr__(self, name: str) -> Any:
            return getattr(jobs, name)

        def unblock(self, job_id: str, feeds: Sequence[tuple[int, str]]) -> Any:
            answer = jobs.unblock(job_id, feeds)
            unblocked.update(dict.fromkeys([index for index, _ in feeds], time.time()))
            return answer

    def look(index: int, job_id: str) -> None:
        entries: Any = rig.cluster.client.xrevrange(keys("events", job_id), count=8)
        for entry, fields in entries:
            events[fields["k"], int(fields["i"] or -1)] = int(entry.split("-")[0]) / 1000 + 0.0005

    watched: Any = Watched()
    rig.cluster = replace(rig.cluster, jobs=watched)
    try:
        _upscaled(rig, sizes.tile, sizes.tile * sizes.chain, sizes.tile, look)
    finally:
        rig.cluster = replace(rig.cluster, jobs=jobs)
    pairs = [(index, events["done", index - 1]) for index in range(_FIRST_TILE + 1, _FIRST_TILE + sizes.chain)]
    return [(unblocked[index] - done, events["claimed", index] - done) for index, done in pairs]


# -- rows
def _growth_rows(found: dict[int, list[_Times]], sizes: Sizes, workers: int) -> list[Row]:
    tiles = {side: [one.tiles_s for one in times] for side, times in found.items()}
    whole = {side: [one.saved_s for one in times] for side, times in found.items()}
    least, most = sizes.sides[0], sizes.sides[-1]
    given = []
    for side in sizes.sides:
        target = LARGEST_S if side == most else None
        name = f"upscale that changes nothing, {side}^2, tile {sizes.tile}, {workers} workers: image here -> last tile here"
        given.append(Row(name, median(tiles[side]), "s", target, f"{len(_plan(side, sizes.tile).steps)} tiles; {spread(tiles[side], 2)}"))
    for side in sizes.sides:
        given.append(Row(f"the same, {side}^2: image here -> last stage done", median(whole[side]), "s", None, spread(whole[side], 2)))
    pixels = (most // least) ** 2
    growth = median(tiles[most]) / median(tiles[least])
    given.append(Row(f"tiles of {most}^2 over {least}^2", growth, "x", MOST_GROWTH, f"{pixels} times the pixels"))
    return given


def _memory_rows(found: dict[int, list[_Times]], sizes: Sizes) -> list[Row]:
    side = sizes.sides[-1]
    shares = [one.peak_bytes / one.canvas_bytes for one in found[side]]
    canvas = found[side][0].canvas_bytes / 1e6
    note = f"canvas {canvas:.0f} MB; {spread(shares, 2)}; mapped files counted"
    return [Row(f"the same, {side}^2: peak memory of the master over the canvas in float32", max(shares), "x", MOST_MEMORY, note)]


def _chain_rows(chain: list[tuple[float, float]]) -> list[Row]:
    freed, claimed = ([1000 * one[part] for one in chain] for part in (0, 1))
    note = f"p95 {percentile(freed, 0.95):.1f}; {spread(freed)}"
    return [
        Row("last dependency done -> next tile claimable, p50", median(freed), "ms", None, note),
        Row("last dependency done -> next tile claimed, p50", median(claimed), "ms", None, f"p95 {percentile(claimed, 0.95):.1f}"),
    ]


def _alone_rows(sizes: Sizes) -> list[Row]:
    given = []
    for side in sizes.sides:
        times = [_blended_alone(side, sizes.tile) for _ in range(3)]
        given.append(Row(f"plan, cut, blend alone, {side}^2, no cluster", median(times), "s", None, spread(times, 2)))
    return given


def _blended_alone(side: int, tile: int) -> float:
    image = pattern(0, side, side)
    began = time.monotonic()
    blender = Blender(_plan(side, tile), image)
    ready = blender.cuttable()
    while ready:
        index = ready.pop()
        blender.put(index, blender.cut(index))
        ready += blender.advance().to_cut
    canvas = blender.finish()
    seconds = time.monotonic() - began
    if not np.array_equal(canvas, image):
        raise BenchmarkFailed("blending what was cut has changed the image")
    return seconds


def _plan(side: int, tile: int) -> Any:
    return plan_tiles((side, side), TileOptions(tile, tile, padding=32, feather=8))
