"""What gpu.py found, as rows, as Markdown and as JSON."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu_checks import Cancelled, Exhausted, Freed
from benchmarks.gpu_rounds import Run, Way, all_mean, all_median, quiet_period, share_by_gaps, share_of_plain
from benchmarks.rows import median, spread

SHARE_OF_PLAIN = 0.99
GIB = 2**30


@dataclass(frozen=True)
class Line:
    """One number and what it should be."""

    name: str
    value: str
    target: str = ""
    met: bool | None = None
    note: str = ""


@dataclass
class Findings:
    """Everything that one run found; fields are filled as it goes on, so a run that breaks off still tells what it has."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Hardware, versions, command, model."""
    cold: dict[str, float] = field(default_factory=dict)
    """What start and first pictures took, in seconds."""
    ways: Sequence[Way] = ()
    runs: Mapping[str, Sequence[Run]] = field(default_factory=dict)
    cancelled: Sequence[Cancelled] = ()
    freed: Freed | None = None
    exhausted: Exhausted | None = None

    def as_json(self) -> str:
        """Every number, raw."""
        plain = {
            "facts": self.facts,
            "cold": self.cold,
            "runs": {name: [dataclasses.asdict(run) for run in runs] for name, runs in self.runs.items()},
            "cancelled": [dataclasses.asdict(one) for one in self.cancelled],
            "freed": self.freed and dataclasses.asdict(self.freed),
            "exhausted": self.exhausted and dataclasses.asdict(self.exhausted),
            "lines": [dataclasses.asdict(line) for line in self.lines()],
        }
        return json.dumps(plain, indent=1, default=str)

    def as_markdown(self) -> str:
        """The tables of docs/performance.md."""
        facts = [f"- {name}: {value}" for name, value in self.facts.items()]
        parts = ["\n".join(facts), _ways_table(self.ways, self.runs), _lines_table(self.lines())]
        return "\n\n".join(part for part in parts if part) + "\n"

    def lines(self) -> list[Line]:
        """The rows with targets, and those that explain them."""
        found = [Line(name, f"{seconds:.1f} s") for name, seconds in self.cold.items()]
        if self.runs:
            found += _warm_lines(self.ways, self.runs)
        if self.cancelled:
            found += _cancel_lines(self.cancelled, _step_s(self.runs))
        if self.freed is not None:
            found += _free_lines(self.freed, on_gpu="driver" in self.facts)
        if self.exhausted is not None:
            found += _exhausted_lines(self.exhausted)
        return found


def _step_s(runs: Mapping[str, Sequence[Run]]) -> float:
    return all_median(runs["plain"], "steps") if runs else 0.0


# -- one way beside the other -------------------------------------------------------------------------------------------
def _ways_table(ways: Sequence[Way], runs: Mapping[str, Sequence[Run]]) -> str:
    if not runs:
        return ""
    head = ["way", "s per picture", "of plain", "target 99 %", "by idle time", "quiet period", "of plain", "step", "decode"]
    head += ["gap, median", "mean", "dispatch", "busy", "first", "last", "MB moved", "cores", "all", "stolen"]
    rows = [head, ["---"] * len(head), *(_way_row(way, runs) for way in ways)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _way_row(way: Way, runs: Mapping[str, Sequence[Run]]) -> list[str]:
    own, plain = runs[way.name], runs.get(way.control, ())
    seconds = [run.seconds for run in own]
    return [
        way.name,
        f"{median(seconds):.3f} ({spread(seconds, 3)})",
        *(_shares(own, plain) if plain else ["", "", "", f"{quiet_period(own):.3f} s", ""]),
        *(_ms(all_median(own, name)) for name in ("steps", "decodes", "gaps")),
        _ms(all_mean(own, "gaps")),
        _ms(all_median(own, "dispatches")),
        f"{median([run.work.busy for run in own]):.1%}",
        _ms(median([run.first_s for run in own])),
        _ms(median([run.last_s for run in own])),
        f"{median([run.moved_bytes for run in own]) / 1e6:.1f}",
        f"{median([run.cores for run in own]):.1f}",
        f"{median([run.all_cores for run in own]):.1f}",
        f"{median([run.stolen for run in own]):.1%}",
    ]


def _shares(own: Sequence[Run], plain: Sequence[Run]) -> list[str]:
    share, quiet = share_of_plain(own, plain), quiet_period(own)
    verdict = "met" if share >= SHARE_OF_PLAIN else "missed"
    return [f"{share:.1%}", verdict, f"{share_by_gaps(own, plain):.1%}", f"{quiet:.3f} s", f"{quiet_period(plain) / quiet:.1%}"]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


# -- rows ---------------------------------------------------------------------------------------------------------------
def _warm_lines(ways: Sequence[Way], runs: Mapping[str, Sequence[Run]]) -> list[Line]:
    ours = [run for way in ways if way.control for run in runs[way.name]]
    reads, moves = sum(run.work.reads for run in ours), sum(run.work.moves for run in ours)
    found = [
        Line("models read from disk or moved to the device in warm jobs", f"{reads} reads, {moves} moves", "0", reads + moves == 0,
             f"{len(ours)} runs"),
    ]  # fmt: skip
    saved = runs.get("plain, saved", ())
    saves = all_median(saved, "saves")
    if saves:
        png = median([run.saved_bytes for run in saved]) / 1e6
        found.append(Line("SaveImage inside ComfyUI, per picture", _ms(saves), note=f"all PNG files of a run: {png:.1f} MB"))
    peak = max(run.work.peak_bytes for run in ours)
    if peak:
        found.append(Line("most device memory that torch allocated in our engine", f"{peak / GIB:.2f} GiB"))
    return found


def _cancel_lines(cancelled: Sequence[Cancelled], step_s: float) -> list[Line]:
    free, stopped = [one.next_s for one in cancelled], [one.stopped_s for one in cancelled]
    steps, loads = max(one.steps_after for one in cancelled), sum(one.reads + one.moves for one in cancelled)
    limit_s = step_s + 0.05
    return [
        Line("model calls begun after a cancel", f"{steps} at most", "1", steps <= 1, f"{len(cancelled)} jobs"),
        Line("cancel -> ComfyUI has stopped", _ms(median(stopped)), f"{_ms(limit_s)} (a step and 50 ms)", median(stopped) <= limit_s,
             f"{spread(stopped, 3)} s"),
        Line("cancel -> the next job's item begins", _ms(median(free)), note=f"{spread(free, 3)} s"),
        Line("models read or moved for the next picture", str(loads), "0", loads == 0),
    ]  # fmt: skip


def _free_lines(freed: Freed, *, on_gpu: bool) -> list[Line]:
    used = f"{freed.loaded_bytes / GIB:.2f} -> {freed.freed_bytes / GIB:.2f} -> {freed.again_bytes / GIB:.2f} GiB"
    return [
        Line("memory in use: warm -> cleared -> next picture made", used, "falls" if on_gpu else "",
             freed.freed_bytes < freed.loaded_bytes if on_gpu else None, "all processes on the device" if on_gpu else "engine process"),
        Line("clear memory: order -> memory is back", f"{freed.free_s:.2f} s"),
        Line("next picture after that", f"{freed.next_s:.2f} s", note=f"{freed.reads} reads, {freed.moves} moves"),
    ]  # fmt: skip


def _exhausted_lines(exhausted: Exhausted) -> list[Line]:
    message = str(exhausted.cause.get("fields", {}).get("last") or exhausted.cause.get("fields", {}).get("exception_message", ""))
    code = str(exhausted.cause.get("code", ""))
    return [
        Line("out of memory: the job fails with torch's own error", f"{code}, {exhausted.attempts} attempts", "out_of_memory, 3 attempts",
             "memory" in exhausted.error and exhausted.attempts == 3, " ".join(message.split())[:160]),
        Line("the next picture, in the same engine", f"{exhausted.next_s:.2f} s", "made", exhausted.engine_lives,
             f"memory in use after the failure: {exhausted.freed_bytes / GIB:.2f} GiB"),
    ]  # fmt: skip


def _lines_table(lines: Sequence[Line]) -> str:
    rows = ["| what | measured | target | | note |", "|---|---|---|---|---|"]
    for line in lines:
        verdict = "" if line.met is None else "met" if line.met else "missed"
        rows.append(f"| {line.name} | {line.value} | {line.target} | {verdict} | {line.note.replace('|', '/')} |")
    return "\n".join(rows)
