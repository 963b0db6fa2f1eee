"""``distributed-comfy up`` on a host with GPUs: what it finds, where workers run, and what that is worth: ``benchmarks/gpu_agent.py``.

Everything is real but the model, which is random and of SDXL's size (``--size small``: a tiny one, for a CPU); see benchmarks/gpu.py.  The
agent is a process of its own and gets its orders by the command line, as from another host.
"""
from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):  # started as a file: its folder holds modules with common names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import psutil

from benchmarks.gpu_place import SIZES, Place
from benchmarks.rig import BenchmarkFailed
from benchmarks.rows import median
from benchmarks.worker import ROOT
from distributed_comfy.cpu_list import format_cpus
from distributed_comfy.engine.locate import find_comfyui, find_interpreter
from distributed_comfy.messages import to_plain
from distributed_comfy.orchestrator.run import RunOptions, SilentReporter, run_on
from distributed_comfy.orchestrator.servers import Servers, redis_servers
from distributed_comfy.orchestrator.submit import SubmitOptions, read_prompt
from distributed_comfy.settings import child_environment, read_settings
from distributed_comfy.state.records import HostRecord, HostWorker
from tasks.cluster import Cluster, open_cluster

HOST, UNPLACED = "bench", "-all"
READY_S, END_S, POLL_S = 240.0, 60.0, 0.1


@dataclass(frozen=True)
class Bound:
    """Where one worker's engine really runs."""

    worker: str
    device: str
    cores: str
    """What the agent chose."""
    threads: int
    """CPU threads of its engine that it chose."""
    seen: tuple[str, ...]
    """The CPUs that the kernel allows its threads; one entry where all are alike."""
    compute_gpus: tuple[str, ...]
    """Bus ids of the GPUs on which the driver sees the engine."""


@dataclass(frozen=True)
class Run:
    """One job on all workers."""

    placed: bool
    """Workers have cores of their own and few threads; else all cores and torch's choice."""
    items: int
    seconds: float
    item_s: float
    """Median of what an item took in its engine."""
    by_worker: dict[str, int]


class Host:
    """An agent, and the cluster it belongs to."""

    def __init__(self, place: Place, cluster: Cluster, servers: Servers) -> None:
        self.place, self.cluster = place, cluster
        settings = cluster.settings
        self._environment = child_environment(
            settings, host=HOST, workers_file=place.folder / "workers.json", redis_url=servers.redis_url, blob_url=servers.blob_url
        )
        self._log = place.folder / "up.log"
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "distributed_comfy", "up"]
            self.process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    @property
    def record(self) -> HostRecord:
        """What the agent tells."""
        found = self.cluster.hosts.host(HOST)
        if found is None:
            raise BenchmarkFailed(f"there is no agent:\n{self._log.read_text()[-3000:]}")
        return found

    def engines(self) -> dict[str, psutil.Process]:
        """Worker -> its engine process."""
        return {one.name: psutil.Process(one.pid).children()[0] for one in self.record.workers if one.pid}

    def wait_idle(self) -> None:
        """Until no worker has an item."""
        wait(lambda: not any(state.claims for state in self.cluster.workers.workers()), READY_S, "workers to be idle")

    def wait_ready(self) -> None:
        """Until every worker runs and is idle."""

        def ready() -> bool:
            found = self.cluster.hosts.host(HOST)
            states = {state.facts.name: state.state for state in self.cluster.workers.workers()}
            return found is not None and all(
                one.phase == "running" and states.get(one.name) == "idle" for one in found.workers
            )

        wait(ready, READY_S, "workers to be ready", self._log)

    def order(self, *words: str) -> None:
        """A command of ours."""
        command = [sys.executable, "-m", "distributed_comfy", *words]
        done = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkFailed(f"{' '.join(words)}: {done.stderr[-2000:]}")

    def add_unplaced(self) -> None:
        """Beside each worker another one on the same device, with all cores and as many threads, as torch would choose them."""
        cpus = os.sched_getaffinity(0)
        for one in self.record.workers:
            place = ("--cores", format_cpus(cpus), "--threads", str(len(cpus)))
            self.order("workers", "add", f"{one.name}{UNPLACED}", "--device", one.device, *place)
        self.wait_ready()

    def job(self, items: int, placed: bool) -> Run:
        """A job of this many pictures, from submission to files, on the workers of one kind."""
        for one in self.record.workers:
            self.cluster.jobs.drain(one.name, drained=one.name.endswith(UNPLACED) == placed)
        self.wait_idle()
        asked = SubmitOptions(items=items)
        prompt = self.place.job_prompt("save", items)
        began = time.monotonic()
        delivery = run_on(self.cluster, read_prompt(prompt, asked), RunOptions(self.place.new_folder("out"), asked), SilentReporter())
        seconds = time.monotonic() - began
        if delivery.error is not None:
            raise delivery.error
        results = [result for result in delivery.results.values() if result.worker]
        workers = [result.worker for result in results]
        return Run(placed, items, seconds, median([one.seconds for one in results]), {name: workers.count(name) for name in set(workers)})


def bound(host: Host) -> list[Bound]:
    """Where all engines run, by the kernel and the driver."""
    engines, busy = host.engines(), compute_processes()
    return [_bound(one, engines[one.name].pid, busy) for one in host.record.workers if one.name in engines]


def _bound(worker: HostWorker, pid: int, busy: Sequence[tuple[int, str]]) -> Bound:
    masks = {
        line.split(":")[1].strip()
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("Cpus_allowed_list")
    }
    gpus = tuple(sorted(bus for found, bus in busy if found == pid))
    return Bound(worker.name, worker.device, worker.cores, worker.threads, tuple(sorted(masks)), gpus)


def compute_processes() -> list[tuple[int, str]]:
    """(process, bus id of the GPU) of all that compute on a GPU; none where there is no driver."""
    try:
        command = ["nvidia-smi", "--query-compute-apps=pid,gpu_bus_id", "--format=csv,noheader"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    rows = [line.split(",") for line in shown.splitlines() if line.count(",") == 1]
    return [(int(pid), bus.strip()) for pid, bus in rows if pid.strip().isdigit()]


def killed(host: Host) -> float:
    """Kill the agent as a crash would; how long it takes until no engine is left."""
    engines = list(host.engines().values())
    host.process.send_signal(signal.SIGKILL)
    began = time.monotonic()
    wait(lambda: not any(engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE for engine in engines), END_S, "engines to end")
    host.process.wait()
    return time.monotonic() - began


def wait(happened: Callable[[], bool], timeout_s: float, what: str, log: Path | None = None) -> None:
    """Until that is so; ``log`` may say why it is not."""
    give_up = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > give_up:
            why = f":\n{log.read_text(errors='replace')[-3000:]}" if log else ""
            raise BenchmarkFailed(f"waited {timeout_s:.0f} s for {what}{why}")
        time.sleep(POLL_S)


@contextmanager
def open_host(place: Place) -> Iterator[Host]:
    """An agent on private servers, ready."""
    settings = read_settings(
        cache_dir=place.folder / "cache", comfyui_path=place.comfyui, comfyui_python=place.python, comfyui_base_directory=place.base
    )
    with ExitStack() as ending:
        servers = ending.enter_context(redis_servers(settings, private=True))
        cluster = open_cluster(settings, servers.redis_url, servers.blob_url)
        ending.callback(cluster.close)
        host = Host(place, cluster, servers)
        ending.callback(host.process.wait)
        ending.callback(host.process.terminate)
        wait(lambda: cluster.hosts.host(HOST) is not None or host.process.poll() is not None, READY_S, "the agent")
        yield host


def main() -> int:
    """Run, print, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="sdxl")
    parser.add_argument("--device", default="cuda:0", help="on which the models are made [cuda:0]")
    parser.add_argument("--items", type=int, default=8, help="pictures of each job for each worker [8]")
    parser.add_argument("--rounds", type=int, default=2, help="how often each way of placing is measured [2]")
    parser.add_argument("--json", type=Path, help="write every number here")
    asked = parser.parse_args()
    settings = read_settings()
    comfyui = find_comfyui(settings)
    if comfyui is None:
        raise BenchmarkFailed("no ComfyUI in ~/comfy/ComfyUI; set COMFYUI_PATH")
    with tempfile.TemporaryDirectory(prefix="dc-gpu-", ignore_cleanup_errors=True) as folder:
        python = find_interpreter(settings, comfyui)
        place = Place(SIZES[asked.size], asked.device, comfyui, python, Path(folder).resolve(), os.cpu_count() or 1)
        place.write_models()
        facts = _show(place, asked.items, asked.rounds)
    if asked.json is not None:
        asked.json.write_text(json.dumps(facts, indent=1))
    return 0


def _show(place: Place, items: int, rounds: int) -> dict[str, object]:
    began = time.monotonic()
    with open_host(place) as host:
        host.wait_ready()
        ready_s = time.monotonic() - began
        record = host.record
        count = len(record.workers)
        print(f"agent and {count} workers ready after {ready_s:.1f} s")
        print(json.dumps([to_plain(device) for device in record.devices]))
        host.add_unplaced()
        for placed in (True, False):
            host.job(2 * count, placed)  # reads the models
        places = bound(host)
        for one in places:
            print(json.dumps(asdict(one)))
        runs = []
        for number in range(2 * rounds):
            placed = number % 4 in (0, 3)  # there and back
            runs.append(host.job(items * count, placed))
            print(json.dumps(asdict(runs[-1])), flush=True)
        ended_s = killed(host)
        print(f"agent killed: no engine left after {ended_s:.2f} s")
        wait(lambda: not compute_processes(), END_S, "the GPUs to be free")
    devices = [to_plain(device) for device in record.devices]
    return {
        "ready_s": ready_s, "devices": devices, "places": [asdict(one) for one in places], "runs": [asdict(one) for one in runs],
        "ended_s": ended_s,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
