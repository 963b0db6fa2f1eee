"""Generation and tiled upscales on 1, 2, 4, .. N devices: through our workers, through a ComfyUI as master, and by as many plain ComfyUIs.

``gpu.py --scale`` runs it.  The control is what independent ComfyUI processes make of the same prompts, each on its device, with the cores
and threads that ours have.  All processes live from start to end; within a round each way has its turn on each number of devices, every
other round backwards.  Once per number of devices the bits of the results are compared, too.
"""
from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu_master import DIGEST, Master, batch_prompt, digests, open_master, plain_digests
from benchmarks.gpu_ours import Ours, open_ours
from benchmarks.gpu_place import COLLECTOR, LAST, Place, Seat, node
from benchmarks.gpu_plain import Plain, open_plain
from benchmarks.gpu_trace import Event, Trace
from benchmarks.gpu_upscale import upscale_prompt
from benchmarks.rig import BenchmarkFailed
from distributed_comfy.messages import Prompt
from distributed_comfy.orchestrator.delivery import Delivery
from distributed_comfy.orchestrator.servers import redis_servers
from distributed_comfy.settings import read_settings

_WORK = ("encode", "sample", "decode")
_WAIT_S = 600.0


@dataclass(frozen=True)
class Wanted:
    """What is to be measured."""

    counts: tuple[int, ...]
    """Numbers of devices."""
    items: int
    """Pictures per device."""
    rounds: int
    tile_sides: tuple[int, ...] = ()
    """Sides of the canvases, in tiles."""
    tile_rounds: int = 0
    modes: tuple[str, ...] = ("independent", "chess")
    slots: int = 1
    master: bool = True
    """Also with a ComfyUI as master."""


@dataclass(frozen=True)
class Measured:
    """One run of one way."""

    way: str
    count: int
    """Devices."""
    seconds: float
    """From submission to the end of the last stage."""
    items: int
    """Pictures, or tiles."""
    first_s: float
    """From submission to the first work on a device."""
    last_s: float
    """From the end of the last work on a device to the end of it all; the last stage's own encodings and samplings would be work."""
    busy: float
    """Share of the devices' time in which they encoded, sampled or decoded, from the first such work to the last."""
    floor_s: float
    """The devices' own time for the items over their number: nothing can be faster."""
    step_s: float
    """Median time from one model call to the next of the same item."""
    moved_bytes: int
    """In and out of both Redis servers."""
    rss_bytes: Mapping[str, int]
    """Peak of each process during the run."""
    vram_bytes: int
    """Most that torch had allocated in any process."""
    made_by: Mapping[str, int]


@dataclass
class Scaled:
    """All that was found."""

    runs: list[Measured] = field(default_factory=list)
    alike: dict[str, bool] = field(default_factory=dict)
    """What was compared bit for bit -> whether it was the same."""
    cold: dict[str, float] = field(default_factory=dict)
    seats: Sequence[Seat] = ()


class Stage:
    """All processes, ready; `open_stage` starts them."""

    def __init__(self, place: Place, plains: Sequence[Plain], ours: Sequence[Ours], master: Master | None, wanted: Wanted) -> None:
        self.place, self.plains, self.ours, self.master, self.wanted = place, plains, ours, master, wanted

    # -- ways ------------------------------------------------------------------------------------------------------------
    def ways(self) -> list[tuple[str, int, Callable[[], Measured]]]:
        """(name, devices, run) of every way to make pictures."""
        found: list[tuple[str, int, Callable[[], Measured]]] = []
        for count in self.wanted.counts:
            found += [("plain", count, lambda n=count: self.plain(n)), ("headless", count, lambda n=count: self.headless(n))]
            if self.master is not None:
                found.append(("master", count, lambda n=count: self.through_master(n)))
        return found

    def tile_ways(self) -> list[tuple[str, int, Callable[[], Measured]]]:
        """The same of tiled upscales."""
        found: list[tuple[str, int, Callable[[], Measured]]] = []
        for count in self.wanted.counts:
            for side in self.wanted.tile_sides:
                for mode in self.wanted.modes[: None if count > 1 else 1]:  # alone, the order of tiles makes no difference
                    name = f"{mode} {side * self.place.size.side}^2"
                    found.append((f"headless, {name}", count, lambda n=count, s=side, m=mode: self.tiles(n, s, m)))
                if self.master is not None:
                    mode = self.wanted.modes[0]
                    name = f"{mode} {side * self.place.size.side}^2"
                    found.append((f"master, {name}", count, lambda n=count, s=side, m=mode: self.tiles_through_master(n, s, m)))
        return found

    def plain(self, count: int) -> Measured:
        """Each of ``count`` plain ComfyUIs makes its share."""
        plains = self.plains[:count]
        shares = [[self.place.plain_prompt("swallow") for _ in range(self.wanted.items)] for _ in plains]
        watch = Watch("plain", count, [each.trace for each in plains], {f"plain {i}": each.pid for i, each in enumerate(plains)})
        with ThreadPoolExecutor(count) as threads:
            spans = list(threads.map(lambda pair: pair[0].run(pair[1]), zip(plains, shares, strict=True)))
        made = {f"plain {i}": self.wanted.items for i in range(count)}
        return watch.measured(min(span[0] for span in spans), max(span[1] for span in spans), self.wanted.items * count, 0, made)

    def headless(self, count: int) -> Measured:
        """One job on ``count`` workers; its last stage takes the batch."""
        items = self.wanted.items * count
        return self._job("headless", count, self.place.job_prompt("swallow", items), items, items)

    def tiles(self, count: int, side: int, mode: str) -> Measured:
        """One upscale on ``count`` workers."""
        name = f"headless, {mode} {side * self.place.size.side}^2"
        return self._job(name, count, upscale_prompt(self.place, mode, side, self.place.size.steps), None, side * side)

    def through_master(self, count: int) -> Measured:
        """A batch over the collector of a ComfyUI that takes part, beside ``count`` - 1 workers."""
        items = self.wanted.items * count
        prompt = batch_prompt(self.place, self.place.next_seed(items), items, "")
        del prompt[DIGEST]
        return self._posted("master", count, {**prompt, LAST: node("GpuSwallow", images=[COLLECTOR, 0])}, items)

    def tiles_through_master(self, count: int, side: int, mode: str) -> Measured:
        """An upscale of a ComfyUI that takes part."""
        name = f"master, {mode} {side * self.place.size.side}^2"
        return self._posted(name, count, upscale_prompt(self.place, mode, side, self.place.size.steps), side * side)

    def _job(self, way: str, count: int, prompt: Prompt, asked: int | None, items: int) -> Measured:
        workers = self.ours[:count]
        with self._at_work(workers):
            pids = {"this process": os.getpid(), **{each.name: each.engine_pid for each in workers}}
            watch = Watch(way, count, [each.trace for each in workers], pids)
            moved, began = workers[0].moved_bytes(), time.time()
            delivery = delivered(workers[0].run(prompt, asked))
            ended = time.time()
            made = Counter(result.worker for result in delivery.results.values())
            return watch.measured(began, ended, items, workers[0].moved_bytes() - moved, made)

    def _posted(self, way: str, count: int, prompt: Prompt, items: int) -> Measured:
        assert self.master is not None
        master = self.master
        with self._only(count - 1):
            engines = engines_of(master, count - 1)
            traces = [master.trace, *(Trace(master.base / "trace" / str(pid)) for pid in engines.values())]
            watch = Watch(way, count, traces, {"master": master.server.process.pid, **engines})
            clients = (master.cluster.client, master.cluster.blob_client)
            before, moved, began = list(master.cluster.jobs.jobs()), moved_bytes(clients), time.time()
            prompt_id = master.server.queue(prompt)
            ended = master.trace.wait("prompt:end", 1, began, timeout_s=_WAIT_S, alive=lambda: master.server.alive).at
            master.server.check(prompt_id, 30.0)
            jobs = [job for job in master.cluster.jobs.jobs() if job not in before]
            made = Counter(master.makers(jobs[-1]).values()) if jobs else {}
            return watch.measured(began, ended, items, moved_bytes(clients) - moved, made)

    @contextmanager
    def _at_work(self, workers: Sequence[Ours]) -> Iterator[None]:
        with ExitStack() as ending:
            for each in workers:
                ending.enter_context(each.at_work())
            yield

    @contextmanager
    def _only(self, count: int) -> Iterator[None]:
        """Let so many of the master's workers take items, and no others."""
        assert self.master is not None
        for number, name in enumerate(sorted(self.master.workers())):
            self.master.cluster.jobs.drain(name, drained=number >= count)
        self.master.server.until(self.master.is_idle, _WAIT_S, "idle workers")
        yield

    # -- bits ------------------------------------------------------------------------------------------------------------
    def compare(self, alike: dict[str, bool]) -> None:
        """Whether pictures and upscales have the same bits on any number of devices."""
        items, first = self.wanted.items, self.place.next_seed(self.wanted.items)
        right = plain_digests(self.plains[0], first, items)
        for count in self.wanted.counts:
            label = f"headless-{count}"
            with self._at_work(self.ours[:count]):
                delivered(self.ours[0].run(batch_prompt(self.place, first, items, label), items))
            alike[f"{items} pictures, headless on {count} of plain ComfyUI's"] = digests(self.place.base, label) == right
            if self.master is not None:
                with self._only(count - 1):
                    label = f"master-{count}"
                    self.master.server.check(self.master.server.queue(batch_prompt(self.place, first, items, label)))
                alike[f"{items} pictures, master and {count - 1} of plain ComfyUI's"] = digests(self.master.base, label) == right
        for side in self.wanted.tile_sides[:1]:
            self._compare_tiles(alike, side, self.place.next_seed())

    def _compare_tiles(self, alike: dict[str, bool], side: int, seed: int) -> None:
        found: dict[str, list[str]] = {}
        for count in sorted({min(self.wanted.counts), max(self.wanted.counts)}):
            name = f"headless on {count}"
            prompt = self._digested(side, seed, name)
            with self._at_work(self.ours[:count]):
                delivered(self.ours[0].run(prompt))
            found[name] = digests(self.place.base, name)
            if self.master is not None and count == max(self.wanted.counts):
                with self._only(count - 1):
                    name = f"master and {count - 1}"
                    self.master.server.check(self.master.server.queue(self._digested(side, seed, name)), _WAIT_S)
                found[name] = digests(self.master.base, name)
        right = next(iter(found.values()))
        for name, sums in found.items():
            alike[f"upscale to {side * self.place.size.side}^2, {name}"] = bool(right) and sums == right

    def _digested(self, side: int, seed: int, label: str) -> Prompt:
        prompt = upscale_prompt(self.place, self.wanted.modes[0], side, self.place.size.steps)
        prompt["up"]["inputs"]["seed"] = seed
        return {**{key: value for key, value in prompt.items() if key != "end"}, DIGEST: node("GpuDigest", images=["up", 0], label=label)}


class Watch:
    """Looks at the processes of a run: memory from its making on, and what their traces show of a span of time."""

    def __init__(self, way: str, count: int, traces: Sequence[Trace], pids: Mapping[str, int]) -> None:
        self._way, self._count, self._traces, self._pids = way, count, traces, pids
        for pid in pids.values():
            _forget_peak(pid)

    def measured(self, began: float, ended: float, items: int, moved: int, made_by: Mapping[str, int]) -> Measured:
        """The numbers of the span; times are ``time.time()``."""
        events = [trace.events(began, ended + 0.01) for trace in self._traces]
        work = [intervals(each) for each in events]
        flat = sorted(span for each in work for span in each)
        if not flat:
            raise BenchmarkFailed(f"{self._way}: no work was seen")
        first, last = flat[0][0], max(end for _, end in flat)
        own = sum(end - begin for begin, end in flat)
        steps = sorted(gap for each in events for gap in step_times(each))
        peaks = [event.facts["peak"] for each in events for event in each if event.name == "prompt:end"]
        return Measured(
            self._way, self._count, ended - began, items, first - began, ended - last, own / max(1e-9, (last - first) * self._count),
            own / self._count, steps[len(steps) // 2] if steps else 0.0, moved, {name: _peak(pid) for name, pid in self._pids.items()},
            max(peaks, default=0), dict(made_by),
        )  # fmt: skip


def intervals(events: Sequence[Event]) -> list[tuple[float, float]]:
    """When one process worked on its device, without overlaps: encoding, sampling, decoding."""
    found: list[tuple[float, float]] = []
    opened: dict[str, float] = {}
    for event in events:
        name, _, phase = event.name.partition(":")
        if name in _WORK and phase == "begin":
            opened[name] = event.at
        elif name in _WORK and name in opened:
            begin = max(opened.pop(name), found[-1][1] if found else 0.0)
            if event.at > begin:
                found.append((begin, event.at))
    return found


def step_times(events: Sequence[Event]) -> list[float]:
    """Times from one model call to the next of the same item."""
    found: list[float] = []
    last: float | None = None
    for event in events:
        if event.name == "step":
            if last is not None:
                found.append(event.at - last)
            last = event.at
        elif event.name == "sample:end":
            last = None
    return found


def delivered(delivery: Delivery) -> Delivery:
    """One that ended well."""
    if delivery.error is not None:
        raise delivery.error
    return delivery


def moved_bytes(clients: Sequence[Any]) -> int:
    """What has gone in and out of these servers so far."""
    stats = [client.info("stats") for client in clients]
    return sum(int(each["total_net_input_bytes"]) + int(each["total_net_output_bytes"]) for each in stats)


def engines_of(master: Master, count: int) -> dict[str, int]:
    """Engine processes of the first ``count`` workers, by name."""
    found: dict[str, int] = {}
    for name, state in sorted(master.workers().items())[:count]:
        children = psutil.Process(state.facts.pid).children(recursive=True)
        found[name] = next(child.pid for child in children if (master.base / "trace" / str(child.pid)).exists())
    return found


def _forget_peak(pid: int) -> None:
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:  # the peak since its start is told then
        pass


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


@contextmanager
def open_stage(place: Place, seats: Sequence[Seat], wanted: Wanted, scaled: Scaled) -> Iterator[Stage]:
    """Start plain ComfyUIs and workers on every seat, and a master on the first with workers on the others."""
    with ExitStack() as ending:
        settings = read_settings()
        servers, own = (ending.enter_context(redis_servers(settings, private=True)) for _ in range(2))
        contexts = [open_ours(place, servers, f"scale-{seat.name}", slots=wanted.slots, seat=seat) for seat in seats]
        began = time.monotonic()
        with ThreadPoolExecutor(2 * len(seats)) as threads:
            ours = [threads.submit(ending.enter_context, context) for context in contexts]
            plains = [threads.submit(ending.enter_context, open_plain(place, seat, f"plain-{seat.name}")) for seat in seats]
            ready = [each.result() for each in ours], [each.result() for each in plains]
        scaled.cold["plain ComfyUIs and workers ready, all at once"] = time.monotonic() - began
        began = time.monotonic()
        master = ending.enter_context(open_master(place, own, seats)) if wanted.master else None
        scaled.cold["ComfyUI as master ready, and its workers"] = time.monotonic() - began
        yield Stage(place, ready[1], ready[0], master, wanted)


def scale(place: Place, seats: Sequence[Seat], wanted: Wanted, scaled: Scaled) -> None:
    """Measure everything; ``scaled`` is filled as it goes on."""
    scaled.seats = seats
    with open_stage(place, seats, wanted, scaled) as stage:
        for name, count, run in stage.ways():
            if count == max(wanted.counts):  # models are read, and all is as fast as it gets
                scaled.cold[f"first batch, {name} on {count}"] = run().seconds
        _play(stage.ways(), wanted.rounds, scaled)
        stage.compare(scaled.alike)
        _play(stage.tile_ways(), wanted.tile_rounds, scaled)


def _play(ways: Sequence[tuple[str, int, Callable[[], Measured]]], rounds: int, scaled: Scaled) -> None:
    for number in range(rounds):
        for name, count, run in ways if number % 2 == 0 else list(reversed(ways)):
            found = run()
            scaled.runs.append(found)
            print(f"round {number + 1}/{rounds} {name} on {count}: {found.seconds:.2f} s", file=sys.stderr, flush=True)
