"""A whole cluster for tests: real workers as processes of their own, jobs through the orchestrator as the command line sends them."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import WeakSet

import numpy
import pytest
from numpy.typing import NDArray

from distributed_comfy.collector.spool import SPOOL_FOLDER, SpooledItem
from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.messages import ItemResult, LiteralValue, MappingValue, TensorRef, Value, load
from distributed_comfy.orchestrator.delivery import Delivery
from distributed_comfy.orchestrator.progress import Step
from distributed_comfy.orchestrator.run import JobStart, RunOptions, SilentReporter, run_on
from distributed_comfy.orchestrator.submit import SubmitOptions, read_prompt
from distributed_comfy.state.records import WorkerState
from distributed_comfy.transport.frames import decode_tensor
from distributed_comfy.transport.shared_memory import job_key, open_shared_memory
from tasks.cluster import Cluster

PROJECT = Path(__file__).parents[1]
START_TIMEOUT_S = 120.0
JOB_TIMEOUT_S = 90.0

Place = tuple[int, str, str, int]
"""Item, collector, slot, position in the list."""


@dataclass
class WorkerProcess:
    """One worker; its engine is a child of it."""

    name: str
    process: subprocess.Popen[bytes]
    folder: Path

    def log(self) -> str:
        """What worker and engine wrote."""
        texts = [path.read_text(errors="replace") for path in (self.folder / "worker.log", self.engine_log) if path.is_file()]
        return "\n".join(texts)

    @property
    def engine_log(self) -> Path:
        """Where the engine and its nodes print."""
        return self.folder / "cache" / "workers" / self.name / "engine.log"

    def kill(self) -> None:
        """SIGKILL, as the kernel does it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@dataclass
class JobReport(SilentReporter):
    """All that a job told, and what its collector had in the spool, as floats."""

    out: Path
    start: JobStart | None = None
    delivery: Delivery | None = None
    steps: list[Step] = field(default_factory=list)
    arrived: list[int] = field(default_factory=list)
    values: dict[Place, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    """Lines of the rule nodes that were called."""
    planned: list[Sequence[int]] = field(default_factory=list)
    """The numbers of the tiles of each item of an upscale."""
    waited: list[str] = field(default_factory=list)
    """Why it waited, each time that was said."""

    def submitted(self, start: JobStart) -> None:
        """See `orchestrator.run.Reporter`."""
        self.start = start

    def waiting(self, reason: str) -> None:
        """See `orchestrator.run.Reporter`."""
        self.waited.append(reason)

    def step(self, step: Step) -> None:
        """See `orchestrator.run.Reporter`."""
        self.steps.append(step)

    def tiles_planned(self, tiles: Sequence[Sequence[int]]) -> None:
        """See `orchestrator.run.Reporter`."""
        self.planned = list(tiles)

    def item_done(self, index: int, result: ItemResult) -> None:
        """See `orchestrator.run.Reporter`; reads the item's values, because an ended job's spool is removed."""
        items = self.out / SPOOL_FOLDER / self.job_id / "items"
        item = load(SpooledItem, (items / f"{index:06}.json").read_bytes())
        for capture in result.captures:
            place = (index, capture.node_id, capture.slot, capture.list_index)
            self.values[place] = _plain(capture.value, lambda blob: (items / item.folder / item.files[blob][0]).read_bytes())
        self.arrived.append(index)

    @property
    def job_id(self) -> str:
        """Of the job that was queued."""
        assert self.start is not None
        return self.start.record.job_id

    @property
    def done(self) -> Delivery:
        """The delivery of a job that must be complete."""
        assert self.delivery is not None
        assert self.delivery.error is None, self.delivery.error
        return self.delivery

    @property
    def error(self) -> DistributedComfyError:
        """Why a job that must not be complete is not."""
        assert self.delivery is not None and self.delivery.error is not None, "the job is complete"
        return self.delivery.error

    def batches(self, node_id: str, slot: str = "images") -> list[NDArray[Any]]:
        """What a collector collected, in the order of items and of lists."""
        return [self.values[place] for place in sorted(self.values) if place[1:3] == (node_id, slot)]

    def batch(self, node_id: str) -> NDArray[Any]:
        """All images of a collector."""
        return numpy.concatenate(self.batches(node_id))

    def tiles(self, node_id: str) -> dict[int, NDArray[Any]]:
        """What each tile of an upscale became."""
        assert self.start is not None
        first = self.start.record.first_tile
        return {
            number: self.values[first + item, node_id, "images", at]
            for item, numbers in enumerate(self.planned)
            for at, number in enumerate(numbers)
        }

    def record(self, label: str) -> dict[str, Any]:
        """What the one RuleRecord of this label was given."""
        paths = [file.path for file in self.done.files if file.ref.name == f"{label}.json"]
        assert len(paths) == 1, [file.name for file in self.done.files]
        found: dict[str, Any] = json.loads(paths[0].read_text("utf-8"))
        return found

    def count(self, kind: str) -> int:
        """How often rule nodes of a class were called."""
        return sum(line.split(" ")[0] == kind for line in self.calls)


def left_in_memory(job_id: str) -> set[str]:
    """What this host's memory, which other tests use as well, holds of the job: its folder's files."""
    memory = open_shared_memory()
    return {path.name for path in (memory.root / job_key(job_id)).glob("*")} if memory is not None else set()


class RunningJob:
    """A job in a thread, for tests that disturb it."""

    def __init__(self, rig: Rig, prompt: Mapping[str, Any], options: dict[str, Any]) -> None:
        self.stop = threading.Event()
        self.report = JobReport(rig.new_folder())
        self._rig = rig
        threads = ThreadPoolExecutor(1, thread_name_prefix="job")
        self._end = threads.submit(rig.run_into, self.report, prompt, self.stop, **options)
        threads.shutdown(wait=False)

    def until(self, what: Callable[[], Any], timeout_s: float = JOB_TIMEOUT_S) -> Any:
        """Wait for something true while the job runs."""
        deadline = time.monotonic() + timeout_s
        while not (found := what()):
            if self._end.done():
                self._end.result()
            assert time.monotonic() < deadline, f"not within {timeout_s} s\n{self._rig.logs()}"
            time.sleep(0.005)
        return found

    def queued(self) -> str:
        """The job's id, as soon as there is one."""
        self.until(lambda: self.report.start)
        return self.report.job_id

    def wait(self, timeout_s: float = JOB_TIMEOUT_S) -> JobReport:
        """Its end; raises what `run_on` raised."""
        try:
            self._end.result(timeout_s)
        except TimeoutError:
            pytest.fail(f"the job does not end\n{self._rig.logs()}", pytrace=False)
        return self.report


class Rig:
    """Workers of one engine on one pair of Redis servers."""

    def __init__(self, engine: str, cluster: Cluster, folder: Path, environment: Mapping[str, str]) -> None:
        """Args:
        engine: ``builtin`` or ``comfyui``.
        cluster: open connections.
        folder: for everything.
        environment: variables of all workers.
        """
        self.engine = engine
        self.cluster = cluster
        self.folder = folder
        self.workers: dict[str, WorkerProcess] = {}
        self.execution_log = folder / "executions"
        self._environment = dict(environment)
        self.rule_log = folder / "rule_log"
        self.rule_log.touch()
        self._jobs = 0
        self._begun: WeakSet[RunningJob] = WeakSet()

    def start(self, *names: str, environment: Mapping[str, str] = MappingProxyType({}), **settings: object) -> list[WorkerProcess]:
        """Start workers and wait until all can claim; ``slots=3`` is their DC_SLOTS, ``environment`` what else they get."""
        started = [self.begin_worker(name, settings, environment) for name in names]
        deadline = time.monotonic() + START_TIMEOUT_S
        for worker in started:
            while self.state(worker.name) is None:
                if worker.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"worker {worker.name} did not start:\n{worker.log()[-4000:]}", pytrace=False)
                time.sleep(0.05)
        return started

    def begin_worker(
        self, name: str, settings: Mapping[str, object], environment: Mapping[str, str], inside: Sequence[str] = ()
    ) -> WorkerProcess:
        """Start a worker and do not wait for it.

        Args:
            name: of the worker.
            settings: as for `start`.
            environment: what else it gets.
            inside: what stands before its command, such as ``ip netns exec NAME``.
        """
        folder = self.folder / name
        folder.mkdir(exist_ok=True)  # another life of the same worker has its cache
        ours = {
            "DC_REDIS_URL": self.cluster.redis_url,
            "DC_BLOB_URL": self.cluster.blob_url,
            "DC_KEY_PREFIX": self.cluster.settings.key_prefix,
            "DC_ENGINE": self.engine,
            "DC_DEVICE": "cpu",
            "DC_WORKER_NAME": name,
            "DC_CACHE_DIR": str(folder / "cache"),
            "DC_EXECUTION_LOG": str(self.execution_log),
            "RULE_LOG": str(self.rule_log),
            "PYTHONPATH": str(PROJECT),
            **self._environment,
            **{f"DC_{key.upper()}": str(value) for key, value in settings.items()},
            **environment,
        }
        with (folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [*inside, sys.executable, "-m", *self._worker_command()],
                stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=PROJECT, env={**os.environ, **ours}, start_new_session=True,
            )  # fmt: skip
        self.workers[name] = WorkerProcess(name, process, folder)
        return self.workers[name]

    def _worker_command(self) -> list[str]:
        """ComfyUI finds the test's nodes in its base directory; the built-in engine has to be given them."""
        if self.engine == "comfyui":
            return ["distributed_comfy", "worker", "--end-with-stdin"]
        return ["tests.worker_process"]

    def stop(self, name: str) -> None:
        """End a worker in an orderly way and take it off the list."""
        worker = self.workers.pop(name)
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        try:
            worker.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            worker.kill()

    def close(self) -> None:
        """End all workers, and what a failed test has left of its job: its thread would hold up the end of this process."""
        for job in list(self._begun):
            job.stop.set()
        for worker in self.workers.values():
            assert worker.process.stdin is not None
            worker.process.stdin.close()
        for name in list(self.workers):
            self.stop(name)

    def state(self, name: str) -> WorkerState | None:
        """A worker as the table sees it; None while it cannot claim."""
        states = [state for state in self.cluster.workers.workers() if state.facts.name == name and state.state != "lost"]
        return states[0] if states else None

    def is_idle(self) -> bool:
        """All workers have a running engine and hold nothing."""
        return all((state := self.state(name)) is not None and state.state == "idle" for name in self.workers)

    def wait_idle(self) -> None:
        """Wait for it, whatever a test before killed."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_idle():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.02)

    def run(self, prompt: Mapping[str, Any], **options: Any) -> JobReport:
        """Run a job to its end; ``out`` is its folder, the rest are `SubmitOptions`."""
        report = JobReport(options.pop("out", None) or self.new_folder())
        self.run_into(report, prompt, threading.Event(), **options)
        return report

    def begin(self, prompt: Mapping[str, Any], **options: Any) -> RunningJob:
        """Run a job in a thread."""
        job = RunningJob(self, prompt, options)
        self._begun.add(job)
        return job

    def run_into(self, report: JobReport, prompt: Mapping[str, Any], stop: threading.Event, **options: Any) -> None:
        """Run a job; everything about it lands in ``report``."""
        before = self.rule_log.stat().st_size
        submit = SubmitOptions(**options)
        report.delivery = run_on(self.cluster, read_prompt(prompt, submit), RunOptions(report.out, submit, stop=stop), report)
        report.calls = self.rule_log.read_bytes()[before:].decode().splitlines()

    def executions(self, job_id: str) -> list[tuple[int, str, int]]:
        """Item, claim and engine process of each execution of a job that began, in order."""
        lines = self.execution_log.read_text().splitlines() if self.execution_log.exists() else []
        rows = [line.split(" ") for line in lines]
        return [(int(index), claim_id, int(pid)) for job, index, claim_id, pid in rows if job == job_id]

    def new_folder(self) -> Path:
        """An output folder of its own."""
        self._jobs += 1
        folder = self.folder / f"out{self._jobs}"
        folder.mkdir()
        return folder

    def logs(self) -> str:
        """The ends of all logs, for a failing test."""
        return "\n\n".join(f"--- {worker.name}\n{worker.log()[-3000:]}" for worker in self.workers.values())


def seeds_of(images: NDArray[Any]) -> list[int]:
    """The seed that each picture of a rule node shows."""
    return [int.from_bytes(bytes(image[0, :8, 0].astype(numpy.uint8)), "little") for image in images]


def _plain(value: Value, read: Callable[[str], bytes]) -> Any:
    if isinstance(value, TensorRef):
        frame = read(value.blob)
        return decode_tensor(frame, limit_bytes=max(len(frame), value.size_bytes))
    if isinstance(value, MappingValue):
        return {name: _plain(entry, read) for name, entry in value.entries.items()}
    assert isinstance(value, LiteralValue)
    return value.literal
