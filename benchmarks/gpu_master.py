"""Press Run in a real ComfyUI on a GPU, and workers beside it take part: ``python benchmarks/gpu_master.py --devices cuda:0 cuda:0``.

The first device is the master's, each other one that of a worker which ``distributed-comfy workers add`` gives its host; a device may be
named twice.  All else is as users have it: the pack's door in custom_nodes, prompts by plain ``POST /prompt``, a websocket, and beside it a
plain ComfyUI of the same model, whose pictures are the right ones.  ``--sizes small --devices cpu cpu`` shows the same without a GPU.
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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: its folder holds modules with common names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.gpu_place import COLLECTOR, DECODED, SAMPLER, SEED_NODE, SIZES, Place, Seat, node, plan_seats
from benchmarks.gpu_plain import Plain, open_plain
from benchmarks.gpu_server import Listener, Server, open_server
from benchmarks.gpu_trace import Trace
from benchmarks.rig import BenchmarkFailed
from benchmarks.worker import ROOT
from distributed_comfy.comfyui.installing import find_place, install_door
from distributed_comfy.cpu_list import format_cpus
from distributed_comfy.engine.locate import find_comfyui, find_interpreter
from distributed_comfy.messages import Prompt
from distributed_comfy.orchestrator.servers import Servers, redis_servers
from distributed_comfy.settings import child_environment, read_settings
from distributed_comfy.state.records import WorkerState
from tasks.cluster import Cluster, open_cluster

HOST = "bench"
READY_S, WAIT_S = 240.0, 240.0
INTERRUPT_S = 2.0
DIGEST = "digest"
LONG_STEPS = {"small": 400, "sdxl": 120}
"""Of pictures that take some seconds."""
KILL_STEPS = {"small": 60, "sdxl": 20}
"""Of pictures that take long enough to kill somebody at it."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold."""

    size: str
    name: str
    holds: bool
    seen: str


@dataclass
class Seen:
    """What a run showed."""

    checks: list[Check] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def check(self, size: str, name: str, holds: bool, seen: str) -> None:
        """Keep it, and tell."""
        self.checks.append(Check(size, name, holds, seen))
        print(f"{'ok  ' if holds else 'FAIL'} {size}: {name}: {seen}", flush=True)


class Master:
    """A ComfyUI with the pack, and the workers of its host."""

    def __init__(self, place: Place, cluster: Cluster, server: Server, base: Path, environment: dict[str, str]) -> None:
        self.place, self.cluster, self.server, self.base = place, cluster, server, base
        self.trace = Trace(base / "trace" / str(server.process.pid))
        self._environment = environment

    # -- workers ---------------------------------------------------------------------------------------------------------
    def add_worker(self, seat: Seat) -> None:
        """As a user would."""
        place = ("--cores", format_cpus(seat.cpus), "--threads", str(seat.threads)) if seat.cpus else ()
        command = [sys.executable, "-m", "distributed_comfy", "workers", "add", seat.name, "--device", seat.device, *place]
        done = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkFailed(f"{' '.join(command)}: {done.stderr[-2000:]}\n{self.server.log()[-3000:]}")

    def states(self) -> dict[str, WorkerState]:
        """The workers as the table sees them."""
        return {state.facts.name: state for state in self.cluster.workers.workers()}

    def workers(self) -> dict[str, WorkerState]:
        """Those beside the master."""
        return {name: state for name, state in self.states().items() if state.facts.engine and not name.endswith("-master")}

    def is_idle(self) -> bool:
        """Whether nobody has an item."""
        return not any(state.claims for state in self.states().values())

    def wait_ready(self, count: int) -> None:
        """Until so many workers could take items."""
        self.server.until(lambda: [state.state for state in self.workers().values()] == ["idle"] * count, READY_S, f"{count} idle workers")

    # -- jobs and prompts ------------------------------------------------------------------------------------------------
    def newest_job(self, before: Sequence[str]) -> str:
        """The job that was submitted since ``before`` was the list of jobs."""
        found: list[str] = self.server.until(lambda: [job for job in self.cluster.jobs.jobs() if job not in before], WAIT_S, "job")
        return found[-1]

    def makers(self, job_id: str) -> dict[int, str]:
        """Who has each item, or made it."""
        return {index: state.worker for index, state in self.cluster.jobs.item_states(job_id).items() if state.worker}

    def done_items(self, job_id: str) -> int:
        """How many items are finished."""
        return sum(state.state == "done" for state in self.cluster.jobs.item_states(job_id).values())

    def done_by(self, prompt_id: str) -> str:
        """The worker that ran an ordinary prompt; empty for the master."""
        mark = f"prompt {prompt_id}: done by "
        lines = [line for line in self.server.log().splitlines() if mark in line]
        return lines[-1].split(mark)[1].split(" ")[0] if lines else ""


@contextmanager
def open_master(place: Place, servers: Servers, seats: Sequence[Seat], *arguments: str) -> Iterator[Master]:
    """A master on the first seat and a worker on each other one, all ready."""
    base = _master_base(place)
    settings = read_settings(
        redis_url=servers.redis_url, blob_url=servers.blob_url, cache_dir=place.folder / "cache", comfyui_path=place.comfyui,
        comfyui_python=place.python, host=HOST, workers_file=place.folder / "master-config" / "workers.json",
    )  # fmt: skip
    assert settings.workers_file is not None
    settings.workers_file.parent.mkdir(exist_ok=True)
    settings.workers_file.write_text('{"workers": {}}')
    settings.workers_file.with_name("comfyui.json").write_text('{"ordinary": true}')
    environment = child_environment(settings)
    own = ["--base-directory", str(base), *(["--cuda-device", seats[0].device.partition(":")[2]] if place.on_gpu else [])]
    # It sees all GPUs and cores at first, as a user's does: its agent deals them out.
    seat = Seat(seats[0].name, "", (), seats[0].threads)
    ours = {name: value for name, value in environment.items() if name not in os.environ or os.environ[name] != value}
    with ExitStack() as ending:
        cluster = open_cluster(settings, servers.redis_url, servers.blob_url)
        ending.callback(cluster.close)
        server = ending.enter_context(open_server(place, seat, "master", [*own, *arguments], ours))
        master = Master(place, cluster, server, base, environment)
        server.until(lambda: server.ask("/distributed_comfy/status")["session"] == "ready", READY_S, "session")
        server.until(lambda: (server.ask("/distributed_comfy/status").get("host") or {}).get("agent") == "here", READY_S, "agent")
        for each in seats[1:]:
            master.add_worker(each)
        master.wait_ready(len(seats) - 1)
        for thread in Path(f"/proc/{server.process.pid}/task").iterdir() if seats[0].cpus else ():
            os.sched_setaffinity(int(thread.name), seats[0].cpus)
        yield master


def _master_base(place: Place) -> Path:
    """As the other base directory, with the pack's door, and the same models."""
    base = place.folder / "master-base"
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    (base / "input").mkdir(exist_ok=True)
    if not (base / "models").exists():
        (base / "models").symlink_to(place.base / "models")
    for pack in (place.base / "custom_nodes").glob("*.py"):
        (base / "custom_nodes" / pack.name).write_bytes(pack.read_bytes())
    install_door(find_place(base, place.comfyui), str(ROOT))
    return base


# -- prompts and their bits ---------------------------------------------------------------------------------------------
def plain_digest_prompt(place: Place, seed: int, label: str, *, steps: int = 0, again: int = 0) -> Prompt:
    """One picture as anyone would write it, and the sum of its bits.

    Args:
        place: size and seeds.
        seed: of the picture.
        label: under which the sum is noted.
        steps: others than usual.
        again: so many nodes that change nothing, so that no cache knows the picture.
    """
    prompt = place.graph(seed, 1, steps or place.size.steps)
    latent = prompt[SAMPLER]["inputs"]["latent_image"]
    for number in range(again):
        prompt[f"again{number}"] = node("RepeatLatentBatch", samples=latent, amount=1)
        latent = [f"again{number}", 0]
    prompt[SAMPLER]["inputs"]["latent_image"] = latent
    return {**prompt, DIGEST: node("GpuDigest", images=[DECODED, 0], label=label)}


def batch_prompt(place: Place, seed: int, items: int, label: str, steps: int = 0) -> Prompt:
    """The same of ``items`` seeds, over a collector."""
    prompt = place.graph([SEED_NODE, 0], 1, steps or place.size.steps)
    prompt[SEED_NODE] = node("DistributedSeed", seed=seed)
    prompt[COLLECTOR] = node("DistributedCollector", images=[DECODED, 0], load_balance=False, items=items)
    return {**prompt, DIGEST: node("GpuDigest", images=[COLLECTOR, 0], label=label)}


def digests(base: Path, label: str) -> list[str]:
    """The sums that any process noted under this label."""
    for path in (base / "trace").iterdir():
        for event in Trace(path).events():
            if event.name == "digest" and event.facts["label"] == label:
                return list(event.facts["sums"])
    return []


def repeated_digests(plain: Plain, seed: int, rounds: int) -> list[str]:
    """What plain ComfyUI makes of one seed again and again: whether its bits can be compared at all."""
    found = []
    for again in range(rounds):
        label = f"again-{seed}-{again}-{time.time_ns()}"
        plain.server.check(plain.server.queue(plain_digest_prompt(plain.place, seed, label, again=again)))
        found += digests(plain.place.base, label)
    return found


def plain_digests(plain: Plain, seed: int, items: int, steps: int = 0) -> list[str]:
    """What plain ComfyUI makes of these seeds."""
    place = plain.place
    labels = [f"plain-{seed + number}" for number in range(items)]
    ids = [plain.server.queue(plain_digest_prompt(place, seed + number, label, steps=steps)) for number, label in enumerate(labels)]
    for prompt_id in ids:
        plain.server.check(prompt_id)
    return [each for label in labels for each in digests(place.base, label)]


# -- what is shown ------------------------------------------------------------------------------------------------------
class Show:
    """One size of model on one master.

    Args:
        master: ready.
        plain: the control.
        seen: takes what is seen.
        items: pictures of a batch.
    """

    def __init__(self, master: Master, plain: Plain, seen: Seen, items: int) -> None:
        self.master, self.plain, self.seen, self.items = master, plain, seen, items
        self.place = master.place
        self.size = master.place.size.name

    def check(self, name: str, holds: bool, what: str) -> None:
        """See `Seen.check`."""
        self.seen.check(self.size, name, holds, what)

    def all(self) -> None:
        """One after the other; each on pictures that nobody made before."""
        self.control()
        self._warm_up()
        self.together()
        self.interrupt()
        self.killed()
        self.ordinary()

    def control(self) -> None:
        """Plain ComfyUI beside itself: its first pictures, and the same ones again."""
        first, again = (repeated_digests(self.plain, self.place.next_seed(), 4) for _ in range(2))
        self.seen.numbers[f"{self.size}: plain ComfyUI, one seed 4 times, from its start on"] = _numbered(first)
        self.seen.numbers[f"{self.size}: plain ComfyUI, another seed 4 times, warm"] = _numbered(again)
        print(f"     {self.size}: plain ComfyUI beside itself: {_numbered(first)} from its start on, {_numbered(again)} warm", flush=True)

    def together(self) -> None:
        """Both take part, the bits are right, and the page hears of it."""
        seed = self.place.next_seed(self.items)
        right = plain_digests(self.plain, seed, self.items)
        with Listener(self.master.server.url) as listener:
            job, seconds, sums, prompt_id = self._run("together", seed, self.items, client_id=listener.client_id)
            progress = [facts for facts in listener.of("progress", prompt_id) if str(facts.get("node")) == COLLECTOR]
            reached = max((int(facts["value"]) for facts in progress), default=0)
            previews = len(listener.pictures)
        took_part, alike = Counter(self.master.makers(job).values()), f"{len(set(sums) & set(right))} of {len(right)}"
        told = f"{len(progress)} messages, {reached} of {self.items}"
        self.check("master and every worker take part", len(took_part) == len(self.master.workers()) + 1, str(dict(took_part)))
        self.check("pictures are plain ComfyUI's bit for bit", bool(right) and sums == right, alike)
        self.check("the collector's progress is told to its end", reached == self.items, told)
        self.check("previews come", previews > 0, f"{previews}")
        self.seen.numbers[f"{self.size}: a batch of {self.items}, s"] = seconds

    def interrupt(self) -> None:
        """Interrupt reaches everybody."""
        before, seed = list(self.master.cluster.jobs.jobs()), self.place.next_seed(self.items)
        steps = LONG_STEPS[self.size]
        prompt_id = self.master.server.queue(batch_prompt(self.place, seed, self.items, "interrupted", steps))
        job = self.master.newest_job(before)
        everybody = len(self.master.workers()) + 1
        self.master.server.until(lambda: len(set(self.master.makers(job).values())) == everybody, WAIT_S, "item with everybody")
        time.sleep(0.5)
        began = time.time()
        self.master.server.ask("/interrupt", {})
        self.master.server.until(self.master.is_idle, WAIT_S, "idle workers")
        idle_s = time.time() - began
        entry = self.master.server.wait(prompt_id)
        ended_s = time.time() - began
        kind = entry["status"]["messages"][-1][0]
        self.check("interrupt ends workers and prompt within 2 s", max(idle_s, ended_s) <= INTERRUPT_S and kind == "execution_interrupted",
                   f"workers idle after {idle_s:.2f} s, prompt {kind} after {ended_s:.2f} s")  # fmt: skip

    def killed(self) -> None:
        """A worker is killed with an item in its hands."""
        seed = self.place.next_seed(self.items)
        right = plain_digests(self.plain, seed, self.items, KILL_STEPS[self.size])
        victim = next(iter(self.master.workers()))

        def kill(job: str) -> None:
            done = 1 if self.items > 2 else 0

            def holds() -> bool:
                return self.master.done_items(job) > done and bool(self.master.states()[victim].claims)

            self.master.server.until(holds, WAIT_S, f"item with {victim}")
            os.kill(self.master.states()[victim].facts.pid, signal.SIGKILL)

        began = time.time()
        job, seconds, sums, _ = self._run("killed", seed, self.items, steps=KILL_STEPS[self.size], meanwhile=kill)
        self.check("kill -9 of a worker mid-way loses nothing", bool(right) and sums == right,
                   f"{len(set(sums) & set(right))} of {len(right)} pictures, bit for bit, in {seconds:.1f} s")  # fmt: skip
        self.master.wait_ready(len(self.master.workers()) or 1)
        self._warm_up()
        self.seen.numbers[f"{self.size}: batch with a killed worker, and that one back again, s"] = time.time() - began
        self.seen.numbers[f"{self.size}: who made it"] = dict(Counter(self.master.makers(job).values()))

    def ordinary(self) -> None:
        """While the master is busy, a worker runs an ordinary prompt."""
        server, seed = self.master.server, self.place.next_seed(2)
        [right] = plain_digests(self.plain, seed + 1, 1)
        began = time.time()
        steps = 2 * LONG_STEPS[self.size]
        busy = server.queue(plain_digest_prompt(self.place, seed, "ordinary-long", steps=steps))
        self.master.trace.wait("step", 1, began, timeout_s=WAIT_S)
        other = server.queue(plain_digest_prompt(self.place, seed + 1, "ordinary"))
        server.check(other)
        free = server.history(busy) is not None
        worker = self.master.done_by(other)
        sums = digests(self.master.base, "ordinary")
        holds = not free and worker in self.master.workers() and sums == [right]
        bits = "right" if sums == [right] else "WRONG"
        told = f"run by {worker or 'the master'}, the master {'was free' if free else 'still busy'}, bits {bits}"
        self.check("an ordinary prompt is run by a worker while the master is busy", holds, told)
        server.ask("/interrupt", {"prompt_id": busy})
        server.wait(busy)

    def _warm_up(self) -> None:
        """Pictures until everybody has made two: the first one of a process reads the models."""
        everybody, made = len(self.master.workers()) + 1, Counter[str]()
        while len(made) < everybody or min(made.values()) < 2:
            items = 2 * everybody
            job, *_ = self._run("warm", self.place.next_seed(items), items)
            made.update(self.master.makers(job).values())

    def _run(  # noqa: PLR0913 - all but the first three are exceptions, by name
        self, name: str, seed: int, items: int, *, steps: int = 0, meanwhile: Callable[[str], None] = lambda _: None, client_id: str = ""
    ) -> tuple[str, float, list[str], str]:
        """(job, seconds, sums of its pictures, prompt) of a batch."""
        label = f"{self.size}-{name}-{seed}"
        before, began = list(self.master.cluster.jobs.jobs()), time.time()
        more = {"client_id": client_id} if client_id else {}
        prompt_id = self.master.server.queue(batch_prompt(self.place, seed, items, label, steps), **more)
        job = self.master.newest_job(before)
        meanwhile(job)
        self.master.server.check(prompt_id)
        return job, time.time() - began, digests(self.master.base, label), prompt_id


def _numbered(sums: Sequence[str]) -> str:
    """Equal ones get the same letter."""
    order = list(dict.fromkeys(sums))
    return "".join("ABCDEFGH"[order.index(each)] for each in sums)


def main() -> int:
    """Run, print, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=["small", "sdxl"])
    parser.add_argument("--devices", nargs="+", default=["cuda:0", "cuda:0"], help="the master's first [cuda:0 cuda:0]")
    parser.add_argument("--items", type=int, default=8, help="pictures of each batch [8]")
    parser.add_argument("--folder", type=Path, help="for models and logs; without it a temporary one")
    parser.add_argument("--json", type=Path, help="write what was seen here")
    asked = parser.parse_args()
    seen = Seen()
    with ExitStack() as ending:
        folder = asked.folder or Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="dc-gpu-", ignore_cleanup_errors=True)))
        try:
            for size in asked.sizes:
                _show(SIZES[size].name, asked, folder.resolve() / size, seen)
        finally:
            if asked.json is not None:
                asked.json.write_text(json.dumps(asdict(seen), indent=1))
    return 0 if all(check.holds for check in seen.checks) else 1


def _show(size: str, asked: argparse.Namespace, folder: Path, seen: Seen) -> None:
    settings = read_settings()
    comfyui = find_comfyui(settings)
    if comfyui is None:
        raise BenchmarkFailed("no ComfyUI in ~/comfy/ComfyUI; set COMFYUI_PATH")
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(SIZES[size], asked.devices[0], comfyui, find_interpreter(settings, comfyui), folder, os.cpu_count() or 1)
    place.write_models()
    seats = plan_seats(asked.devices)
    with ExitStack() as ending:
        servers = ending.enter_context(redis_servers(settings, private=True))
        began = time.time()
        plain = ending.enter_context(open_plain(place, seats[0]))
        plain_ready = time.time()
        master = ending.enter_context(open_master(place, servers, seats, "--preview-method", "latent2rgb"))
        seen.numbers[f"{size}: plain ComfyUI ready, s"] = plain_ready - began
        seen.numbers[f"{size}: master and workers ready, s"] = time.time() - plain_ready
        Show(master, plain, seen, asked.items).all()


if __name__ == "__main__":
    sys.exit(main())
