"""Tiles: how soon an idle worker starts one, with nobody to make up for a ticket that was not sent, and what an upscale costs."""
from __future__ import annotations

import random
import secrets
import time
from typing import Any

import numpy as np

from benchmarks import upscale
from benchmarks.rig import BenchmarkFailed, Rig, open_rig
from benchmarks.rows import Row, Section, median, percentile, spread
from distributed_comfy.messages import ItemSpec, JobRecord, Prompt, Requirement, content_hash, dump
from distributed_comfy.planning.requirements import signature
from distributed_comfy.state.jobs import Submission
from distributed_comfy.transport.feed_names import Feed
from distributed_comfy.transport.values import store_value

P95_MS = 20.0
SIDE = 576
_OWNER = "benchmark"
_NEVER_S = 3600.0

HOW = """\
A job grows by one tile after the other; each has its crop (float32, 3 channels, 576 pixels a side) in the blob store before it is made
claimable, for one worker that has been idle for 20 to 60 ms, while no process reaps. The clock starts just before that call. *Starts* is
the moment at which the engine process enters the tile's first node, told by the node itself; *done* is the time of the script that
entered the result, in the Redis server's clock, to 0.5 ms: until then the engine fetches the crop, and ships one of the same size.

*Upscale that changes nothing*: whole jobs with the mode `linear`, padding 32, blur 8, at denoise 0, where the built-in sampler hands back
what it got; the node behind the upscale compares every bit. *Image here -> last tile here* is all that tiles cost the master and the
cluster: the canvas file, planning, cutting, both ways through the blob store, the spool, blending. *Last stage done* adds the way of the
whole canvas to the worker that runs what lies behind. Sizes take turns. *Peak memory* is what the master's resident memory rose by, pages
of mapped files included, which the system may take back. *Last dependency*: a canvas of one column, where each tile waits for the one
before, and one idle worker; the clock starts when the result is entered (Redis' clock), and what lies between is its way into the spool
and onto the disk, blending it, cutting and storing the next crop."""

_PROMPT: Prompt = {
    "2": {"class_type": "BenchItem", "inputs": {"seed": 0, "seconds": 0.0}},
    "3": {"class_type": "DistributedSink", "inputs": {"claim_id": "", "images": ["2", 0]}},
    "4": {"class_type": "DistributedSource", "inputs": {"claim_id": "", "slots": "images"}},
    "5": {"class_type": "DistributedSink", "inputs": {"claim_id": "", "images": ["4", 0]}},
}


def run(*, quick: bool) -> Section:
    """See the module."""
    with open_rig(quick=quick) as rig:
        rig.start_workers(["w0"], reaper_interval_s=_NEVER_S)
        times = _tile_times(rig, 20 if quick else 400)
        rig.start_workers(["w1"])
        rows = upscale.rows(rig, ["w0", "w1"], upscale.QUICK if quick else upscale.FULL)
    starts, done = ([one[part] * 1000 for one in times] for part in (0, 1))
    return Section(
        "Tiles",
        HOW,
        [
            Row("runnable tile stored -> started on an idle worker, reaper off, p50", median(starts), "ms", None, spread(starts)),
            Row("runnable tile stored -> started on an idle worker, reaper off, p95", percentile(starts, 0.95), "ms", P95_MS),
            Row("runnable tile stored -> done, nothing computed, p50", median(done), "ms", None, f"p95 {percentile(done, 0.95):.1f}"),
            *rows,
        ],
    )


def _tile_times(rig: Rig, tiles: int) -> list[tuple[float, float]]:
    """For each tile when it started and when it was done, in seconds since it was offered."""
    jobs, job_id, chance = rig.cluster.jobs, secrets.token_hex(6), random.Random(1)
    jobs.submit(_growing_job(job_id), _OWNER)
    found = []
    for index in range(1, tiles + 6):
        jobs.own(job_id, _OWNER)
        jobs.extend(job_id, [ItemSpec(index, "tile", content_hash(_PROMPT), ("3", "5"))])
        feed = _feed(rig, job_id, index)
        rig.wait_idle(["w0"])
        time.sleep(chance.uniform(0.02, 0.06))
        times = _one_tile(rig, job_id, index, feed)
        if index > 5:  # the first ones open connections and import modules
            found.append(times)
    jobs.cancel(job_id, "the benchmark is over")
    rig.cluster.blobs.drop_job(job_id)
    return found


def _one_tile(rig: Rig, job_id: str, index: int, feed: str) -> tuple[float, float]:
    jobs = rig.cluster.jobs
    cursor, _ = jobs.wait_events(job_id, "", 0.0)
    began = time.time()
    jobs.unblock(job_id, [(index, feed)])
    while (found := jobs.result(job_id, index)) is None:
        cursor, events = jobs.wait_events(job_id, cursor, 10.0)
        if not events:
            raise BenchmarkFailed(f"tile {index} does not run: {jobs.item_states(job_id)[index]}")
    jobs.mark_fetched(job_id, index, found[0])
    entries: Any = rig.cluster.client.xrevrange(rig.keys("events", job_id), count=1)
    return float(found[1].outputs["2"]["began"][0]) - began, int(entries[0][0].split("-")[0]) / 1000 + 0.0005 - began


def _growing_job(job_id: str) -> Submission:
    """Its first item waits for ever, so that there is nothing to do but tiles."""
    needs = Requirement("builtin", tuple(sorted({node["class_type"] for node in _PROMPT.values()})))
    name = content_hash(_PROMPT)
    record = JobRecord(job_id, "benchmark", 5, 1, (name,), name, requirement=needs, grows=True)
    return Submission(record, [ItemSpec(0, "generate", name, ("3",))], {name: _PROMPT}, signature(needs), blocked=(0,))


def _feed(rig: Rig, job_id: str, index: int) -> str:
    crop = np.zeros((1, SIDE, SIDE, 3), np.float32)
    value = store_value(rig.cluster.blobs, f"{job_id}:crop:{index}", crop, job_id=job_id, limit_bytes=2**30)
    feed: Feed = {"4": {"images": (value,)}}
    return dump(feed)
