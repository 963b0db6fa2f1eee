"""One picture from a worker at the far end of a slow, long line to the collector, with each way for tensors to travel."""
from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.image_writer import SIDE
from benchmarks.nodes import photo
from benchmarks.rig import BenchmarkFailed, Rig, image_prompt, item_prompt, open_rig, ran
from benchmarks.rows import Row, Section, median, spread
from benchmarks.slow_link import SlowLink, bare_seconds, missing, slow_link
from distributed_comfy.collector.collect import Collector, CollectorOptions
from distributed_comfy.collector.file_formats import to_pixels
from distributed_comfy.collector.spool import Spool, SpoolManifest
from distributed_comfy.frame_plan import FRAME_OPTIONS, FrameOption
from distributed_comfy.messages import ItemResult, TensorRef
from distributed_comfy.orchestrator.ownership import Ownership
from distributed_comfy.transport.encodings import FLOAT16_ABSOLUTE_ERROR, FLOAT16_RELATIVE_ERROR

RATE_MBIT, ROUND_TRIP_MS = 50.0, 40.0
QUICK_SIDE = 256
LOSSY_DB = 40.0
"""What a picture as JPEG must keep, as peak signal over noise."""

HOW = f"""\
Worker and engine run in a network namespace at the far end of a line of {RATE_MBIT:.0f} Mbit/s in each direction and {ROUND_TRIP_MS:.0f} ms
for the round trip; servers and collector are at this end. The line is a process between two TUN devices that delays real packets of the
kernel's TCP (and loses those that find its buffer of 100 ms full), because many kernels, this one too, are built without netem. The
picture is {SIDE} x {SIDE} x 3 float32, 12.6 MB: noise whose strength falls with its frequency as that of photographs does, with last bits
as random as a VAE's, and about as hard to compress as photographs are. The time is from the end of the node to the collector's report
that it is safe in the spool, one item after the other on an idle worker. What arrives is compared: bit for bit (exact, zstd), pixel for
pixel with the PNG of the exact picture (auto, whose collector has no consumer but that file), within the bound (fp16), at {LOSSY_DB:.0f} dB
or more (lossy). *Bound*: these bytes at the full rate of the line, without headers of packets, and no round trip. *Engine idle*: from one
node's end to the next one's begin, on a worker that always has more to do, without the first few items."""

LIMITS = """\
Headers of TCP and IP take 3.5 % of the line; TCP begins slowly on a connection that was quiet, which is what costs the bare socket its
lead over the bound too. Around the bytes: one round trip until the blob is answered, one for the table's entry. Between two items of a
worker with one slot lie about eight: blob, the result's entry, the next ticket (sent, fetched, noted as taken, the last one acknowledged),
the claim. With two slots the next item is claimed while the last one runs."""


_FIRST_ITEMS = 3
"""Left out where the time between items is measured: the worker fetches what they share."""


@dataclass(frozen=True)
class _Brought:
    """One picture that came home."""

    seconds: float
    stored_bytes: int


def run(*, quick: bool) -> Section:
    """See the module."""
    if lacking := missing():
        return Section("Slow links", f"Not run: it needs {lacking}.", [])
    with open_rig(quick=quick) as rig, slow_link(rate_mbit=RATE_MBIT, round_trip_s=ROUND_TRIP_MS / 1000) as link:
        _start_worker(rig, link)
        side = QUICK_SIDE if quick else SIDE
        bare = [bare_seconds(link, _image_bytes(side)) for _ in range(1 if quick else 3)]
        note = _bound(_image_bytes(side), spread(bare, 2))
        rows = [Row(f"{_megabytes(side)} through a bare socket over the same line, median", median(bare), "s", note=note)]
        rows += [_row(rig, option, side, repeats=1 if quick else 5) for option in FRAME_OPTIONS]
        rows += [_idle_row(rig, link, slots, seconds=0.1 if quick else 0.5, items=6 if quick else 16) for slots in (1, 2)]
    return Section("Slow links", HOW, rows, LIMITS)


def _start_worker(rig: Rig, link: SlowLink, name: str = "far", **chosen: object) -> None:
    """A worker that reaches both servers through the line alone; they listen at its near end too from now on."""
    urls = {}
    servers = {"redis_url": rig.cluster.client, "blob_url": rig.cluster.blob_client}
    for setting, client in servers.items():
        client.config_set("bind", f"127.0.0.1 {link.near}")
        urls[setting] = str(getattr(rig.cluster, setting)).replace("127.0.0.1", link.near)
        if link.near not in urls[setting]:
            raise BenchmarkFailed("the servers do not listen on 127.0.0.1")
    rig.start_workers([name], inside=link.inside, **urls, **chosen)


def _row(rig: Rig, option: FrameOption, side: int, repeats: int) -> Row:
    brought = [_bring(rig, option, side, seed) for seed in range(repeats + 1)][1:]  # the first item imports what it needs
    seconds, stored_bytes = [one.seconds for one in brought], brought[0].stored_bytes
    words = f"{stored_bytes / 1e6:.2f} MB; {_bound(stored_bytes, spread(seconds, 2))}"
    name = f"one {_megabytes(side)} image, node's end -> safe in the spool, --frames {option}, median"
    return Row(name, median(seconds), "s", note=words)


def _idle_row(rig: Rig, link: SlowLink, slots: int, *, seconds: float, items: int) -> Row:
    """How long the engine waits between two items of this length."""
    name = f"slots{slots}"
    _start_worker(rig, link, name, slots=slots)
    rig.use([name])
    job = rig.submit(item_prompt(seconds), items=items)
    rig.wait_end(job)
    times = sorted(ran(rig.result(job, index)) for index in range(items))[_FIRST_ITEMS:]
    rig.forget(job)
    idle = [(begins - ended) * 1000 for (_, ended), (begins, _) in pairwise(times)]
    return Row(f"engine idle between two items of {seconds:g} s, DC_SLOTS={slots}, median", median(idle), "ms", note=spread(idle))


def _image_bytes(side: int) -> int:
    return side * side * 12


def _megabytes(side: int) -> str:
    return f"{_image_bytes(side) / 1e6:.1f} MB"


def _bound(size_bytes: int, measured: str) -> str:
    return f"bound {size_bytes * 8 / RATE_MBIT / 1e6:.2f} s; {measured}"


def _bring(rig: Rig, option: FrameOption, side: int, seed: int) -> _Brought:
    """One item's picture, compared."""
    arrived: list[tuple[float, ItemResult]] = []
    prompt = image_prompt(side, side)
    prompt["1"]["inputs"]["seed"] = seed % 2
    prompt["2"]["class_type"] = "BenchPhoto"
    job = rig.submit(prompt, items=1, frames=option)
    record, folder = job.record, rig.folder / "spool" / job.record.job_id
    with Spool(folder, SpoolManifest(record.job_id, record.resume_key)) as spool, Ownership(rig.cluster, record.job_id, job.owner):
        options = CollectorOptions(on_item=lambda index, result: arrived.append((time.time(), result)))
        Collector(record, rig.cluster.jobs, rig.cluster.blobs, spool, options).run()
        at, result = arrived[0]
        ref = result.captures[0].value
        assert isinstance(ref, TensorRef)
        _compare(option, spool.array(0, ref), photo(seed % 2, side, side))
    shutil.rmtree(folder)
    rig.forget(job)
    return _Brought(at - ran(result)[1], ref.payload_bytes)


def _compare(option: FrameOption, found: NDArray[Any], expected: NDArray[Any]) -> None:
    if not _is_as_promised(option, found, expected):
        raise BenchmarkFailed(f"a picture under --frames {option} did not arrive as promised")


def _is_as_promised(option: FrameOption, found: NDArray[Any], expected: NDArray[Any]) -> bool:
    if option in ("exact", "zstd"):
        return found.tobytes() == expected.tobytes()
    if option == "auto":
        return bool(np.array_equal(to_pixels(found[0]), to_pixels(expected[0])))
    errors = np.abs(found.astype(np.float64) - expected)
    if option == "fp16":
        return bool((errors <= np.maximum(expected * FLOAT16_RELATIVE_ERROR, FLOAT16_ABSOLUTE_ERROR)).all())
    levels = np.abs(to_pixels(found[0]).astype(np.float64) - to_pixels(expected[0]))
    return bool(10 * np.log10(255**2 / np.mean(levels**2)) >= LOSSY_DB)
