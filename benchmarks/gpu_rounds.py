"""The same pictures through us and through plain ComfyUI, one way after the other, round after round."""
from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_ours import Ours
from benchmarks.gpu_place import Place
from benchmarks.gpu_plain import Plain
from benchmarks.gpu_trace import Trace, Work, work
from benchmarks.rig import BenchmarkFailed
from benchmarks.rows import median, percentile

Ticks = tuple[int, int, int, int]


@dataclass(frozen=True)
class Run:
    """One way, once: a number of pictures."""

    seconds: float
    """For each picture: from the submission of all to the end of the last, over their number."""
    work: Work
    moved_bytes: int
    """In and out of both Redis servers."""
    saved_bytes: int
    """PNG files."""
    first_s: float
    """From the submission to the first model call."""
    last_s: float
    """From the end of the last decode to the end of it all."""
    cores: float
    """That the ComfyUI process had busy, on average."""
    all_cores: float
    """Of all processes of this machine."""
    stolen: float
    """Share of the processors' time that other machines of the host took."""


@dataclass(frozen=True)
class Way:
    """One way to make the pictures."""

    name: str
    what: str
    run: Callable[[], Run]
    control: str = ""
    """The way of plain ComfyUI to compare with; empty for plain ComfyUI itself."""


@dataclass(frozen=True)
class Contest:
    """What takes part: place, plain ComfyUI, and our workers by their number of slots."""

    place: Place
    plain: Plain
    ours: Mapping[int, Ours]
    items: int

    def ways(self) -> list[Way]:
        """All ways, plain ones first."""
        found = [
            Way("plain", "prompts posted to plain ComfyUI; GpuSwallow takes each picture", lambda: self._plain("swallow")),
            Way("plain, saved", "the same with SaveImage", lambda: self._plain("save")),
        ]
        for slots, ours in self.ours.items():
            found += self._our_ways(ours, f" ({slots} slots)")[:2] if slots > 1 else self._our_ways(ours, "")
        return found

    def _our_ways(self, ours: Ours, mark: str) -> list[Way]:
        return [
            Way(f"prompts{mark}", "the same prompts as jobs of their own", lambda: self._prompts(ours, "swallow"), "plain"),
            Way(f"job, saved{mark}", "one job; pictures saved by us as they arrive", lambda: self._job(ours, "save"), "plain, saved"),
            Way(f"job{mark}", "one job; a last stage with GpuSwallow takes the batch", lambda: self._job(ours, "swallow"), "plain"),
            Way(f"prompts, saved{mark}", "the same with SaveImage", lambda: self._prompts(ours, "save"), "plain, saved"),
        ]

    def _plain(self, end: str) -> Run:
        ticks = _ticks(self.plain.pid)
        began, ended = self.plain.run([self.place.plain_prompt(end) for _ in range(self.items)])
        return self._measured(self.plain.trace, (began, ended, ticks), saved_bytes=self.plain.clear_output())

    def _prompts(self, ours: Ours, end: str) -> Run:
        prompts = [self.place.plain_prompt(end) for _ in range(self.items)]
        return self._watched(ours, lambda: ours.run_all(prompts))

    def _job(self, ours: Ours, end: str) -> Run:
        prompt = self.place.job_prompt(end, self.items)

        def run() -> None:
            delivery = ours.run(prompt, self.items)
            if delivery.error is not None:
                raise delivery.error

        return self._watched(ours, run)

    def _watched(self, ours: Ours, run: Callable[[], None]) -> Run:
        with ours.at_work():
            moved, ticks, began = ours.moved_bytes(), _ticks(ours.engine_pid), time.time()
            run()
            span = (began, time.time(), ticks)
            return self._measured(ours.trace, span, moved_bytes=ours.moved_bytes() - moved, saved_bytes=self._saved())

    def _saved(self) -> int:
        files = list(self.place.folder.glob("out/*/*.png"))
        size = sum(path.stat().st_size for path in files)
        for path in files:
            path.unlink()
        return size

    def _measured(self, trace: Trace, span: tuple[float, float, Ticks], *, moved_bytes: int = 0, saved_bytes: int = 0) -> Run:
        began, ended, before = span
        own, busy, stolen, total = (now - then for now, then in zip(_ticks(int(trace.path.name)), before, strict=True))
        events = trace.events(began, ended + 0.01)
        found = work(events)
        if len(found.decodes) != self.items:
            raise BenchmarkFailed(f"{len(found.decodes)} pictures were decoded and not {self.items}")
        first = next(event.at for event in events if event.name == "step") - began
        last = ended - max(event.at for event in events if event.name == "decode:end")
        share = (os.cpu_count() or 1) / total
        seconds = (ended - began) / self.items
        return Run(seconds, found, moved_bytes, saved_bytes, first, last, own * share, busy * share, stolen / total)


def _ticks(pid: int) -> Ticks:
    """Processor time since the start: that of a process, and of all processors busy, stolen by other machines, and in all."""
    words = Path("/proc/stat").read_text().split("\n")[0].split()
    user, nice, system, idle, waiting, irq, soft, stolen = (int(word) for word in words[1:9])
    busy = user + nice + system + irq + soft
    own = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(own[11]) + int(own[12]), busy, stolen, busy + idle + waiting + stolen


def play(ways: Sequence[Way], rounds: int) -> dict[str, list[Run]]:
    """Each way once per round, every other round backwards."""
    found: dict[str, list[Run]] = {way.name: [] for way in ways}
    for number in range(rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            run = way.run()
            found[way.name].append(run)
            print(f"round {number + 1}/{rounds} {way.name}: {run.seconds:.3f} s per picture", file=sys.stderr, flush=True)
    return found


def share_of_plain(ours: Sequence[Run], plain: Sequence[Run]) -> float:
    """Our pictures per second over plain ComfyUI's, medians over the rounds, from submission to the end."""
    return median([run.seconds for run in plain]) / median([run.seconds for run in ours])


def quiet_period(runs: Sequence[Run]) -> float:
    """From one decoded picture to the next: the time that a quarter of all pictures do not exceed.

    The step time of a model that is bound by its Python code depends on what else runs on the host, and jumps by half from second to
    second; a quarter of all pictures usually came when nothing did.
    """
    return percentile([period for run in runs for period in run.work.periods], 0.25)


def share_by_gaps(ours: Sequence[Run], plain: Sequence[Run]) -> float:
    """Our pictures per second over plain ComfyUI's if sampling and decoding take the same time in both: only the idle times differ."""
    period = quiet_period(plain)
    return period / (period + all_mean(ours, "gaps") - all_mean(plain, "gaps"))


def all_mean(runs: Sequence[Run], name: str) -> float:
    """The mean over all numbers of one list of `Work`, of all rounds; 0 where there are none."""
    values = [value for run in runs for value in getattr(run.work, name)]
    return sum(values) / len(values) if values else 0.0


def all_median(runs: Sequence[Run], name: str) -> float:
    """The median over all numbers of one list of `Work`, of all rounds; 0 where there are none."""
    values = [value for run in runs for value in getattr(run.work, name)]
    return median(values) if values else 0.0
