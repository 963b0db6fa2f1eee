"""Where faults are played: two servers of its own, workers behind networks of their own, and one job at a time that is disturbed."""
from __future__ import annotations

import contextlib
import hashlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from benchmarks.slow_link import SlowLink
from distributed_comfy.messages import Prompt, canonical_json
from distributed_comfy.settings import read_settings
from distributed_comfy.state.keys import Keys
from distributed_comfy.state.scripts import script_source
from tasks.cluster import open_cluster
from tests.blob_server import BlobServer
from tests.cluster_rig import Rig, RunningJob, WorkerProcess
from tests.command_line import CommandLine, until
from tests.partition_proxy import PartitionProxy
from tests.prompts import node, out
from tests.smoke.measured import Costs, Measured, images, lost_and_twice

PREFIX = "smoke:"
STATE_OPTIONS = ("--appendonly", "yes", "--appendfsync", "everysec")
SEED = 700
STEP_MS = 100
MENDED_S = 120.0


@dataclass(frozen=True)
class Timing:
    """How long things take on a field."""

    lease_s: float
    renew_s: float
    steps: int
    """Of an item, each of a tenth of a second."""
    items: int
    frozen_s: float
    """How long a worker that is frozen stays so."""
    cut_s: float
    """How long a network that carries nothing stays so."""
    stall_s: float
    """After this long without a sign of life an engine is ended; above what it takes to start."""
    attempts: int = 3
    """Executions of an item per class of error."""
    old_s: float = 2.0
    """How old a copy of the table is that a server comes back with."""

    @property
    def settings(self) -> dict[str, Any]:
        """Of workers and masters."""
        return {
            "lease_ttl_s": self.lease_s, "renew_interval_s": self.renew_s, "retry_backoff_s": 0.2, "stall_timeout_s": self.stall_s,
            "max_attempts": self.attempts,
        }  # fmt: skip


SHORT = Timing(lease_s=1.5, renew_s=0.3, steps=4, items=9, frozen_s=3.0, cut_s=3.0, stall_s=60.0, old_s=0.3)
LONG = Timing(lease_s=6.0, renew_s=1.5, steps=10, items=24, frozen_s=60.0, cut_s=18.0, stall_s=20.0)
"""Lease and renewals as they are by default."""
COMFYUI = Timing(lease_s=2.0, renew_s=0.5, steps=4, items=8, frozen_s=4.0, cut_s=4.0, stall_s=120.0)
"""The limit of a stall is that of a start, too, which takes real ComfyUI long beside other work."""


@dataclass(frozen=True)
class Hit:
    """An execution that goes on while a fault strikes."""

    worker: WorkerProcess
    index: int
    claim: str
    engine: psutil.Process

    def freeze(self) -> None:
        """Stop worker and engine without ending them."""
        self.engine.suspend()
        self.worker.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let both go on."""
        self.worker.process.send_signal(signal.SIGCONT)
        self.engine.resume()


@dataclass
class Ending:
    """What is left of a job that was disturbed."""

    out: Path
    job_ids: list[str]
    """More than one where another job went on with what the first one had left."""
    told: Sequence[int] = ()
    struck_at: float = 0.0
    """Seconds since 1970, as Redis counts them."""
    index: int | None = None
    """The item that the fault hit."""
    prompt: Prompt | None = None
    """Where it was another one than the field's."""
    costs: Costs | None = None
    """What the faults that struck may have cost, where that is not known before."""
    items: int = 0
    """Of the job; 0: as many as the field's have."""
    reported: tuple[int, ...] = ()
    """Items that the job itself says it could not make."""
    beside: Sequence[Ending] = ()
    """Of other jobs of the same prompt and as many items that went on at the same time."""


@dataclass
class Undisturbed:
    """The same job without a fault."""

    images: Mapping[str, Sequence[bytes]]
    engine_s: float


@dataclass
class Network:
    """The way of one worker to both servers."""

    state: PartitionProxy
    blobs: PartitionProxy

    def each(self, what: Callable[[PartitionProxy], Any]) -> None:
        """Do the same to both."""
        what(self.state)
        what(self.blobs)


@dataclass
class Field:
    """See the module."""

    folder: Path
    program: str
    timing: Timing
    networks: dict[str, Network] = field(default_factory=dict)
    engine: str = "builtin"
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of all workers."""
    shared_memory: bool = False
    """DC_SHARED_MEMORY of workers and masters."""

    def __post_init__(self) -> None:
        self.state = BlobServer(self.program, self.folder / "state", *STATE_OPTIONS)
        self.blobs = BlobServer(self.program, self.folder / "blobs")
        settings = read_settings(key_prefix=PREFIX, cache_dir=self.folder / "cache", owner_ttl_s=5.0, **self._settings)
        self.cluster = open_cluster(settings, self.state.url, self.blobs.url)
        (self.folder / "rig").mkdir()
        self.rig = Rig(self.engine, self.cluster, self.folder / "rig", {"DC_THREADS": "1", **self.environment})
        self.mishaps = self.folder / "mishaps"
        self.mishaps.mkdir()
        self._undisturbed: dict[tuple[str, int], Undisturbed] = {}
        self._quiet_s = 0.0
        self._lines = 0
        self.start_s = 0.0
        """How long the workers took that were started last."""

    @property
    def _settings(self) -> dict[str, Any]:
        """Of workers and masters."""
        return {**self.timing.settings, "shared_memory": self.shared_memory}

    # -- workers -----------------------------------------------------------------------------------------------------------
    def start(self, *names: str, environment: Mapping[str, str] = MappingProxyType({}), **settings: Any) -> list[WorkerProcess]:
        """Start workers, each behind a network of its own, and wait until they can claim."""
        began = time.monotonic()
        started = [self._begin_worker(name, settings, environment) for name in names]
        for name in names:
            self._wait_for(self.rig.workers[name])
        self.start_s = time.monotonic() - began
        return started

    def _begin_worker(
        self, name: str, settings: Mapping[str, object], environment: Mapping[str, str], far: SlowLink | None = None
    ) -> WorkerProcess:
        if name not in self.networks:
            address = far.near if far else "127.0.0.1"
            self.networks[name] = Network(*(PartitionProxy("127.0.0.1", server.port, address) for server in (self.state, self.blobs)))
        ways = {"redis_url": self.networks[name].state.url, "blob_url": self.networks[name].blobs.url, "allow_plaintext": "1"}
        return self.rig.begin_worker(name, {**self._settings, **ways, **settings}, environment, far.inside if far else ())

    def _wait_for(self, worker: WorkerProcess) -> None:
        """Until it can claim."""
        until(lambda: self.rig.state(worker.name) or worker.process.poll() is not None, timeout_s=120)
        assert worker.process.poll() is None, worker.log()[-3000:]

    @contextlib.contextmanager
    def another(
        self, name: str, *, environment: Mapping[str, str] = MappingProxyType({}), far: SlowLink | None = None, **settings: object
    ) -> Iterator[WorkerProcess]:
        """One worker more while the context lasts; ``far`` is the line that it is at the other end of."""
        worker = self._begin_worker(name, settings, environment, far)
        try:
            self._wait_for(worker)
            yield worker
        finally:
            self.networks[name].each(lambda way: way.go_on())
            self.rig.stop(name)
            self.networks.pop(name).each(lambda way: way.close())

    def restart_ended(self) -> None:
        """Start each worker that has ended, as an agent does; wait for none."""
        for name in [name for name, worker in self.rig.workers.items() if worker.process.poll() is not None]:
            self._begin_worker(name, {}, {})

    def mend(self) -> None:
        """All servers, networks and workers as they were before the fault."""
        for server in (self.state, self.blobs):
            if not server.running:
                server.start()
        for network in self.networks.values():
            network.each(lambda way: way.swallow(b""))
            network.each(lambda way: way.go_on())
        deadline = time.monotonic() + MENDED_S
        while not self.rig.is_idle():
            assert time.monotonic() < deadline, self.rig.logs()
            self.restart_ended()
            time.sleep(0.05)
        for order in self.mishaps.iterdir():
            order.unlink()

    def close(self) -> None:
        """End everything."""
        self.rig.close()
        self.cluster.close()
        for network in self.networks.values():
            network.each(lambda way: way.close())
        for server in (self.state, self.blobs):
            server.kill()

    # -- jobs --------------------------------------------------------------------------------------------------------------
    def prompt(self, steps: int = 0) -> Prompt:
        """Pictures of a seed, each after some steps of a tenth of a second; by default as many as the field's timing says."""
        prompt: Prompt = {
            "seed": node("DistributedSeed", seed=SEED),
            "make": node("SeededGenerator", seed=out("seed"), steps=1, width=48, height=32, batch_size=1, style="auto"),
        }
        return self.with_steps(prompt, "make", steps)

    def with_steps(self, prompt: Prompt, last: str, steps: int = 0) -> Prompt:
        """The prompt, its node ``last`` followed by the steps and by what a test may let happen in the midst of them, and collected."""
        steps = steps or self.timing.steps
        for step in range(steps):
            if step == steps // 2:
                prompt["mishap"] = node("RuleMishap", images=out(last), seed=out("seed"), folder=str(self.mishaps))
                last = "mishap"
            prompt[f"step{step}"] = node("RuleStep", images=out(last), milliseconds=STEP_MS)
            last = f"step{step}"
        prompt["collect"] = node("DistributedCollector", images=out(last), load_balance=False)
        return prompt

    def begin(self, prompt: Prompt | None = None, items: int = 0, **options: Any) -> RunningJob:
        """The field's job, or another one, in a thread of this process."""
        return self.rig.begin(prompt or self.prompt(), items=items or self.timing.items, **options)

    def items_for(self, seconds: float) -> int:
        """How many items keep all workers busy for so long and for one lease more."""
        return math.ceil((seconds + self.timing.lease_s) * len(self.rig.workers) * 1000 / (self.timing.steps * STEP_MS))

    def command_line(self) -> CommandLine:
        """A user of this cluster, with ``graph.json`` in the folder."""
        self._lines += 1
        folder = self.folder / f"line{self._lines}"
        folder.mkdir()
        settings = {f"DC_{name.upper()}": str(value) for name, value in self._settings.items()}
        line = CommandLine(
            folder, DC_REDIS_URL=self.state.url, DC_BLOB_URL=self.blobs.url, DC_KEY_PREFIX=PREFIX, DC_OWNER_TTL_S="5", **settings
        )
        line.write("graph.json", self.prompt())
        return line

    def run_command(self, items: int = 0) -> tuple[str, ...]:
        """The field's job, as a user of `command_line` runs it."""
        return ("run", "graph.json", "--items", str(items or self.timing.items), "--out", "made", "--json")

    def wait_for_first_item(self, name: str) -> None:
        """Run a job that only the worker with this name and tag can run: until then its consumer may still connect."""
        before = self.engine_seconds()
        self.rig.begin(self.prompt(), items=1, tags=(name,)).wait()
        self._quiet_s += self.engine_seconds() - before

    def wait_for_some(self, job_id: str) -> None:
        """Wait until a third of the job is done, and more than what its workers hand in first: its owner has something, too."""
        enough = max(self.timing.items // 3, len(self.rig.workers) + 1)
        until(lambda: self.cluster.jobs.job_state(job_id).counts["done"] >= enough)

    def hit(self, job_id: str, *, but: Sequence[str] = (), on: Sequence[str] = ()) -> Hit:
        """Wait for an execution that has made half of its steps; not by one of the workers ``but``, by one of those ``on``."""
        while True:
            hit: Hit = until(lambda: self._hit(job_id, but, on))
            time.sleep(self.timing.steps * STEP_MS / 2000)
            if self._is_running(job_id, hit.index, hit.claim):
                return hit

    def hit_now(self, job_id: str, on: Sequence[str]) -> Hit | None:
        """An execution of the first of these workers that has one."""
        return next((hit for name in on if (hit := self._hit(job_id, (), [name]))), None)

    def _is_running(self, job_id: str, index: int, claim: str) -> bool:
        item = self.cluster.jobs.item_states(job_id).get(index)
        return item is not None and (item.state, item.claim_id) == ("running", claim)

    def _hit(self, job_id: str, but: Sequence[str], on: Sequence[str]) -> Hit | None:
        owners = {self.engine_pid(worker): worker for worker in self.rig.workers.values() if worker.process.poll() is None}
        for index, claim, pid in reversed(self.rig.executions(job_id)):
            worker = owners.get(pid)
            if worker is None or worker.name in but or (on and worker.name not in on):
                continue
            if self._is_running(job_id, index, claim):
                return Hit(worker, index, claim, psutil.Process(pid))
        return None

    @staticmethod
    def engine_pid(worker: WorkerProcess) -> int:
        """The engine process of a worker; 0 while there is none."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(worker.process.pid).children():
                if "boot.py" in " ".join(child.cmdline()):
                    return child.pid
        return 0

    def script(self, name: str) -> bytes:
        """What a call of this script has in it."""
        return hashlib.sha1(script_source(name, PREFIX).encode()).hexdigest().encode()

    def refused(self, job: RunningJob, hit: Hit) -> None:
        """Wait until what a worker says too late is refused, which must be while its job goes on: else it would be refused anyway."""
        job.until(lambda: f"(claim {hit.claim}) went elsewhere" in hit.worker.log())
        state, item = self.cluster.jobs.job_state(job.report.job_id), self.cluster.jobs.item_states(job.report.job_id)[hit.index]
        assert not state.ended, f"the job was over before: {state}"
        assert item.claim_id != hit.claim, item

    # -- measuring -----------------------------------------------------------------------------------------------------------
    def undisturbed(self, prompt: Prompt, items: int) -> Undisturbed:
        """The job of this prompt when nothing happens to it; run once."""
        key = canonical_json(prompt), items
        if key not in self._undisturbed:
            before = self.engine_seconds()
            report = self.begin(prompt, items).wait(timeout_s=1200)
            assert report.done.error is None
            assert len(self.rig.executions(report.job_id)) == items
            self._undisturbed[key] = Undisturbed(images(report.out), self.engine_seconds() - before)
            self._quiet_s += self._undisturbed[key].engine_s
        return self._undisturbed[key]

    def engine_seconds(self) -> float:
        """Time of all steps that engines have made so far."""
        lines = (self.rig.folder / "rule_log").read_text().splitlines()
        return sum(int(line.split(" ")[1]) for line in lines if line.startswith("RuleStep ")) / 1000

    @contextlib.contextmanager
    def measuring(self, name: str, fault: str, costs: Costs, rows: list[Measured]) -> Iterator[list[Ending]]:
        """Put the ending of the context's job into a row, once all is mended."""
        self.undisturbed(self.prompt(), self.timing.items)
        before, began, endings = self.engine_seconds() - self._quiet_s, time.monotonic(), list[Ending]()
        try:
            yield endings
            took_s = time.monotonic() - began
        finally:
            self.mend()
        (ending,) = endings
        spent_s = self.engine_seconds() - self._quiet_s - before
        ends, items = [ending, *ending.beside], ending.items or self.timing.items
        wanted = self.undisturbed(ending.prompt or self.prompt(), items)
        reported = [str(SEED + index) for index in ending.reported]
        left = {seed: files for seed, files in wanted.images.items() if seed not in reported}
        found = [images(end.out) for end in ends]
        counts = [lost_and_twice(left, here, end.told) for here, end in zip(found, ends, strict=True)]
        rows.append(Measured(
            name, fault, items * len(ends), sum(lost for lost, _ in counts), sum(twice for _, twice in counts),
            executions=sum(self.executions(end) for end in ends),
            costs=ending.costs or costs,
            wasted_s=spent_s - wanted.engine_s * len(left) / items * len(ends) if wanted.engine_s else None,
            claimable_s=self._claimable_s(ending),
            identical=all(here.get(seed) == files for here in found for seed, files in left.items()),
            took_s=took_s,
            hit=ending.index is not None,
        ))  # fmt: skip

    def executions(self, ending: Ending) -> int:
        """How often an engine began an item of the job."""
        return sum(len(self.rig.executions(job_id)) for job_id in ending.job_ids)

    def _claimable_s(self, ending: Ending) -> float | None:
        """From the fault until the table told that the item it hit was given back."""
        if ending.index is None:
            return None
        entries: Any = self.cluster.client.xrange(Keys(PREFIX)("events", ending.job_ids[0]))
        at = [
            int(number.split("-")[0]) / 1000 for number, fields in entries if fields["k"] == "released" and fields["i"] == str(ending.index)
        ]
        return next((moment - ending.struck_at for moment in at if moment >= ending.struck_at), None)

    def ended(self, job: RunningJob, hit: Hit | None, struck_at: float, timeout_s: float = 90.0) -> Ending:
        """Wait for the end of a job that must be complete."""
        report = job.wait(timeout_s)
        assert report.done.error is None
        state = self.cluster.jobs.job_state(report.job_id)
        assert (state.state, state.counts["done"]) == ("done", len(report.arrived)), state
        return Ending(report.out, [report.job_id], report.arrived, struck_at, hit.index if hit else None)


def strike(action: Callable[[], Any]) -> float:
    """Let the fault happen; when it did, in seconds since 1970."""
    struck_at = time.time()
    action()
    return struck_at


def kill(process: Any) -> None:
    """SIGKILL."""
    os.kill(process.pid, signal.SIGKILL)
