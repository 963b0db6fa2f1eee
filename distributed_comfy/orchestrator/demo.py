"""The demo: one prompt, N seeds, on several CPU workers and then on one of them, and a part of a picture upscaled by all.

All of it with a private Redis; leaves pictures and a summary.
"""
from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

import numpy as np

from distributed_comfy.errors import RunInterrupted
from distributed_comfy.orchestrator.delivery import Delivery, prepare_folder
from distributed_comfy.orchestrator.demo_summary import ALONE_FOLDER, DemoResult, forget_last_demo, remember_files
from distributed_comfy.orchestrator.demo_upscale import run_upscale
from distributed_comfy.orchestrator.local_workers import WorkerOptions
from distributed_comfy.orchestrator.run import Reporter, RunOptions, open_session, run_on
from distributed_comfy.orchestrator.servers import redis_servers
from distributed_comfy.orchestrator.submit import GivenPrompt, SubmitOptions, check_early, read_prompt
from distributed_comfy.settings import Settings
from distributed_comfy.transport.pictures import read_picture
from tasks.cluster import Cluster


@dataclass(frozen=True)
class DemoOptions:
    """What the demo is to do."""

    out: Path
    items: int = 8
    workers: int = 2
    on_phase: Callable[[str], None] = lambda title: None
    """Told what comes next."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set it to end the demo."""


def run_demo(settings: Settings, options: DemoOptions, reporter: Reporter) -> DemoResult:
    """Run the demo in a private cluster of its own; when this returns, nothing of it runs any more.

    Raises:
        OutputUnwritable, ItemsOutOfRange, NoRedisServer, EngineStartFailed: it could not begin.
        RunInterrupted: ``options.stop`` was set.
        JobFailed: the job failed.
    """
    asked = SubmitOptions(items=options.items, engine="builtin", user="demo")
    given = read_prompt(json.loads((resources.files(__package__) / "demo_prompt.json").read_text("utf-8")), asked)
    check_early(given, asked)
    prepare_folder(options.out)
    forget_last_demo(options.out)
    with redis_servers(settings, private=True) as servers:
        assert servers.folder is not None
        # Everything temporary lies in the servers' folder, which their keeper removes even if this process is killed.
        # One thread each: with more, the workers' threads wait for each other wherever the machine has other things to do.
        private = settings.model_copy(update={"cache_dir": servers.folder / "demo", "threads": settings.threads or 1})
        worker = WorkerOptions("builtin", devices=("cpu",), name="worker")
        run = RunOptions(options.out, asked, options.workers, worker, options.stop, prefix="demo", keep=False)
        with open_session(private, servers, run, reporter) as cluster:
            return _run_jobs(cluster, given, run, options, reporter)


def _run_jobs(cluster: Cluster, given: GivenPrompt, run: RunOptions, options: DemoOptions, reporter: Reporter) -> DemoResult:
    workers = tuple(state.facts.name for state in cluster.workers.workers())
    options.on_phase(f"{len(workers)} workers")
    together = run_on(cluster, given, run, reporter)
    remember_files(options.out, together)
    _check(together, options.stop)
    alone, same = None, None
    if len(workers) > 1:
        options.on_phase("one worker")
        alone, same = _run_alone(cluster, given, run, (together, workers), reporter)
    options.on_phase("upscale")
    upscale = run_upscale(cluster, together.images[0].path, workers, run, reporter)
    remember_files(options.out, together, upscale.delivery)
    _check(upscale.delivery, options.stop)
    return DemoResult(together, workers, upscale, alone, same)


def _run_alone(
    cluster: Cluster, given: GivenPrompt, run: RunOptions, first: tuple[Delivery, tuple[str, ...]], reporter: Reporter
) -> tuple[Delivery, bool]:
    """The job again on one worker, and whether it gave the same pixels."""
    together, workers = first
    folder = run.out / ALONE_FOLDER
    try:
        with _drained(cluster, set(workers) - {_fresh_worker(together, workers)}):
            alone = run_on(cluster, given, replace(run, out=folder), reporter)
        _check(alone, run.stop)
        same = all(_same_pixels(one.path, other.path) for one, other in zip(together.images, alone.images, strict=True))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return alone, same


def _check(delivery: Delivery, stop: threading.Event) -> None:
    if stop.is_set():
        raise RunInterrupted(when="before the demo was over")
    if delivery.error is not None:
        raise delivery.error


def _fresh_worker(delivery: Delivery, workers: Sequence[str]) -> str:
    """A worker that has not got the next job's first picture in its cache, because the last item it made was another one."""
    last = max(delivery.results)
    of_last_item = delivery.results[last].worker
    return of_last_item if last > 0 else next(name for name in workers if name != of_last_item)


@contextmanager
def _drained(cluster: Cluster, names: set[str]) -> Iterator[None]:
    """These workers get nothing while the context lasts."""
    for name in names:
        cluster.jobs.drain(name)
    try:
        yield
    finally:
        for name in names:
            cluster.jobs.drain(name, drained=False)


def _same_pixels(first: Path, second: Path) -> bool:
    return np.array_equal(np.asarray(read_picture(first)), np.asarray(read_picture(second)))
