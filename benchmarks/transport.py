"""What it takes to bring pictures of 12.6 MB from a worker to the collector, and how much memory the servers need for it."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.image_writer import SIDE
from benchmarks.nodes import pattern
from benchmarks.other_ways import OtherWays, other_ways
from benchmarks.rig import BenchmarkFailed, Rig, image_prompt, open_rig, peak_bytes, ran
from benchmarks.rows import Row, Section, median, percentile, spread
from benchmarks.worker import ROOT
from distributed_comfy.collector.collect import Collector, CollectorOptions
from distributed_comfy.collector.spool import Spool, SpoolManifest
from distributed_comfy.messages import ItemResult, TensorRef, load
from distributed_comfy.orchestrator.ownership import Ownership
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.transport.near_blobs import NearBlobStore
from distributed_comfy.transport.shared_memory import open_shared_memory
from distributed_comfy.transport.values import load_value, store_value

ONE_MS, NEAR_MS, ALL_S, PEAK_GB = 20.0, 3.0, 0.8, 0.2
IMAGES = 64
FETCH_THREADS = 4
"""As `CollectorOptions.fetch_threads`."""

HOW = f"""\
A picture is {SIDE} x {SIDE} x 3 float32, 12.6 MB, its bits known from its seed; every one that arrives is compared bit for bit. *One
image*: frame with checksum, put in chunks, get, checksum, unlink, over loopback through the blob Redis, one after the other. Taking turns
with it, the same picture goes to another process by two other ways: as today's packs for ComfyUI send it (rounded to 8 bits, PNG without
compression, base64, JSON, HTTP), and as bare bytes through a socket, without a store or a checksum, which no way over a network can beat;
and through shared memory, as the results of a worker on the collector's own host go. *{IMAGES}
images*: a process of its own stores them as fast as it can, {FETCH_THREADS} threads here fetch, check and unlink each as soon as it is
told of, as the collector does; the time is from the word to begin to the last unlink, the peak is the new blob server's own
`used_memory_peak`. *Through the cluster*: the same pictures made by workers (the engine process stores them, the table tells, the
collector fetches them into its spool on disk with an fsync); for one image the time is from the end of the node to the collector's report
that it is safe, for {IMAGES} from submission to the last one, on two workers, with the peaks of both servers (the state with its
append-only file on)."""


LIMITS = """\
Copies: each byte goes through memory six times (sender, kernel, server, its output buffer, kernel, receiver), and one server thread does
four of them. Through the cluster the disk comes on top: the spool holds a picture only once it is synced, so that a finished item
survives a restart and a power cut, and writing and syncing these bytes alone takes the time of the disk row. 7 ms to the table, 7 ms to
fetch, that, and 2 ms for the checksum do not fit in 20 ms with this disk. The many images are made by nodes that cost nothing, so two
workers fill the blob store faster than one disk empties it; what bounds the store there is the cap on a job's bytes in flight (1 GiB),
not the collector."""


def run(*, quick: bool) -> Section:
    """See the module."""
    images = 4 if quick else IMAGES
    rows = []
    with open_rig(quick=quick) as rig, other_ways() as others:
        rows += _one_image(rig.cluster.blobs, others, repeats=3 if quick else 100)
    with open_rig(quick=quick) as rig:
        rows += _pipelined(rig, images, repeats=1 if quick else 7)
    with open_rig(quick=quick) as rig:
        rows += _through_the_cluster(rig, images, repeats=1 if quick else 3)
    return Section("Transport", HOW, rows, LIMITS)


# -- one image ----------------------------------------------------------------------------------------------------------
def _one_image(store: BlobStore, others: OtherWays, repeats: int) -> list[Row]:
    parts: dict[str, list[float]] = {"png": [], "raw": []}
    far, near = (_Stages() for _ in range(2))
    with _near_store(store) as near_store:
        for seed in range(repeats + 2):
            image = pattern(seed, SIDE, SIDE)
            stages = [far.measure(store, image, seed)]
            stages += [near.measure(near_store, image, seed)] if near_store is not None else []
            png, raw = others.send_png(image), others.send_raw(image)
            if seed >= 2:
                for keep in stages:
                    keep()
                parts["png"].append(png)
                parts["raw"].append(raw)
    rows = [
        Row("one 12.6 MB image, put + get + checksums, median", median(far.all), "ms", ONE_MS, far.note),
        Row("one 12.6 MB image, put + get + checksums, p95", percentile(far.all, 0.95), "ms", note=spread(far.all)),
    ]
    if near.all:
        rows += [
            Row("the same through this host's shared memory, median", median(near.all), "ms", NEAR_MS, near.note),
            Row("the same through this host's shared memory, p95", percentile(near.all, 0.95), "ms", note=spread(near.all)),
        ]
    return [
        *rows,
        Row("the same as 8-bit PNG (level 0) in base64 in JSON by HTTP POST", median(parts["png"]), "ms", note=spread(parts["png"])),
        Row("the same bytes through a bare socket, kept nowhere", median(parts["raw"]), "ms", note=spread(parts["raw"])),
    ]


@contextmanager
def _near_store(far: BlobStore) -> Iterator[BlobStore | None]:
    """A worker's store beside a collector of the job ``one`` on the same host; None where that has no shared memory."""
    memory = open_shared_memory()
    if memory is None:
        yield None
        return
    with memory.offered("one"):
        yield NearBlobStore(far, memory, results_near=True)


class _Stages:
    """What one way took, in ms, each picture there and back."""

    def __init__(self) -> None:
        self.put: list[float] = []
        self.get: list[float] = []
        self.unlink: list[float] = []
        self.all: list[float] = []

    @property
    def note(self) -> str:
        """Medians of the parts."""
        return ", ".join(f"{name} {median(getattr(self, name)):.1f}" for name in ("put", "get", "unlink"))

    def measure(self, store: BlobStore, image: NDArray[np.float32], seed: int) -> Callable[[], None]:
        """Send one picture; what is returned keeps its numbers."""
        began = time.perf_counter()
        ref = store_value(store, f"one:{seed}", image, job_id="one", limit_bytes=2**33)
        put = time.perf_counter()
        back = load_value(store, ref, as_torch=False)
        got = time.perf_counter()
        assert isinstance(ref, TensorRef)
        store.unlink([ref.blob])
        ended = time.perf_counter()
        _check_bits(back, seed)

        def keep() -> None:
            for name, seconds in (("put", put - began), ("get", got - put), ("unlink", ended - got), ("all", ended - began)):
                getattr(self, name).append(seconds * 1000)

        return keep


def _check_bits(found: Any, seed: int) -> None:
    expected = pattern(seed, SIDE, SIDE)
    same_kind = found.dtype == expected.dtype and found.shape == expected.shape
    if not same_kind or not np.array_equal(found.view(np.uint32), expected.view(np.uint32)):
        raise BenchmarkFailed(f"image {seed} did not arrive bit for bit")


# -- many images --------------------------------------------------------------------------------------------------------
def _pipelined(rig: Rig, images: int, repeats: int) -> list[Row]:
    seconds = []
    with _writer(rig, images) as writer, ThreadPoolExecutor(FETCH_THREADS) as threads:
        for number in range(repeats):
            seconds.append(_one_pipeline(rig.cluster.blobs, writer, threads, f"run{number}"))
    peak = peak_bytes(rig.cluster.blob_client) / 1e9
    megabytes = images * SIDE * SIDE * 12 / 1e6
    rate = f"{megabytes / median(seconds):.0f} MB/s, {spread(seconds, 2)}"
    return [
        Row(f"{images} images, pipelined, median", median(seconds), "s", ALL_S * images / IMAGES, rate),
        Row(f"{images} images, pipelined: peak of the blob Redis", peak, "GB", PEAK_GB),
    ]


@contextmanager
def _writer(rig: Rig, images: int) -> Iterator[subprocess.Popen[str]]:
    url_file = rig.folder / "url"
    url_file.touch(mode=0o600)
    url_file.write_text(rig.cluster.blob_url)
    command = [sys.executable, "-m", "benchmarks.image_writer", str(url_file), str(images)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        assert writer.stdout and writer.stdin
        if writer.stdout.readline() != "ready\n":
            raise BenchmarkFailed("the writing process did not start")
        yield writer
        writer.stdin.close()


def _one_pipeline(store: BlobStore, writer: subprocess.Popen[str], threads: ThreadPoolExecutor, name: str) -> float:
    assert writer.stdout and writer.stdin
    ended: list[float] = []

    def fetch(line: str) -> Any:
        ref = load(TensorRef, line)
        image = load_value(store, ref, as_torch=False)
        store.unlink([ref.blob])
        ended.append(time.perf_counter())
        return image

    writer.stdin.write(f"{name}\n")
    began = time.perf_counter()
    writer.stdin.flush()
    # A few at a time stay in memory: all of them are as large as this machine may have to spare.
    images = [threads.submit(fetch, line) for _, line in zip(range(_count(writer)), writer.stdout, strict=False)]
    for seed, image in enumerate(images):
        _check_bits(image.result(), seed)
    return max(ended) - began


def _count(writer: subprocess.Popen[str]) -> int:
    arguments: Any = writer.args
    return int(arguments[-1])


# -- through the cluster ------------------------------------------------------------------------------------------------
def _through_the_cluster(rig: Rig, images: int, repeats: int) -> list[Row]:
    names = ["w0", "w1"]
    rig.start_workers(names)
    rig.use(names[:1])
    _collect(rig, 1)  # the first item imports modules
    home, stored, disk = [], [], []
    for _ in range(3 if rig.quick else 60):
        to_table, to_spool = _node_to_spool(rig)
        stored.append(to_table)
        home.append(to_spool)
        disk.append(_write_and_sync(rig.folder / "disk"))
    rig.use(names)
    seconds = [_collect(rig, images).seconds for _ in range(repeats)]
    blob_peak, state_peak = (peak_bytes(client) / 1e9 for client in (rig.cluster.blob_client, rig.cluster.client))
    persistence: Any = rig.cluster.client.info("persistence")
    log_mb = int(persistence["aof_current_size"]) / 1e6
    parts = f"{median(stored):.1f} until it is in the table, the rest until it is on the disk; {spread(home)}"
    return [
        Row("one 12.6 MB image, node's end -> safe in the spool, median", median(home), "ms", ONE_MS, parts),
        Row("12.6 MB written and synced to the same disk, nothing else, median", median(disk), "ms", note=spread(disk)),
        Row(f"{images} images made by two workers -> all in the spool", median(seconds), "s", ALL_S * images / IMAGES, spread(seconds, 2)),
        Row("the same: peak of the blob Redis", blob_peak, "GB", PEAK_GB),
        Row("the same: peak of the state Redis, append-only file on", state_peak * 1000, "MB", note=f"append-only file {log_mb:.1f} MB"),
    ]


def _node_to_spool(rig: Rig) -> tuple[float, float]:
    """Milliseconds from the end of the node until the item is done in the table, and until it is in the spool."""
    collected = _collect(rig, 1)
    _, ended = ran(collected.results[0])
    return (collected.done[0] - ended) * 1000, (collected.arrived[0] - ended) * 1000


def _write_and_sync(path: Path) -> float:
    """Milliseconds for the bytes of a picture; what no spool on this disk can be faster than."""
    content = pattern(1, SIDE, SIDE).data.cast("B")
    began = time.perf_counter()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds * 1000


class _Collected:
    """A job of pictures, from submission to the last one in the spool."""

    def __init__(self) -> None:
        self.results: dict[int, ItemResult] = {}
        self.arrived: dict[int, float] = {}
        self.done: dict[int, float] = {}
        self.seconds = 0.0

    def add(self, index: int, result: ItemResult) -> None:
        """An item lies in the spool."""
        self.arrived[index] = time.time()
        self.results[index] = result


def _collect(rig: Rig, images: int) -> _Collected:
    found = _Collected()
    began = time.time()
    job = rig.submit(image_prompt(SIDE, SIDE), items=images)
    folder = rig.folder / "spool" / job.record.job_id
    with Spool(folder, SpoolManifest(job.record.job_id, job.record.resume_key)) as spool:
        with Ownership(rig.cluster, job.record.job_id, job.owner):
            Collector(job.record, rig.cluster.jobs, rig.cluster.blobs, spool, CollectorOptions(on_item=found.add)).run()
        found.seconds = max(found.arrived.values()) - began
        found.done = {index: at for at, kind, index in rig.events(job) if kind == "done"}
        for index, result in found.results.items():
            (capture,) = result.captures
            assert isinstance(capture.value, TensorRef)
            _check_bits(spool.array(index, capture.value), int(job.plan.items[index].seed))
    shutil.rmtree(folder)
    rig.forget(job)
    return found
