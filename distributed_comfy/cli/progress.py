"""How a run goes, as it goes: live bars for job and workers on a terminal, plain lines elsewhere."""
from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distributed_comfy.cli.canvas_preview import CanvasPreview
from distributed_comfy.cli.output import Output
from distributed_comfy.messages import ItemResult, JobRecord
from distributed_comfy.orchestrator.counting import PREPARE, JobCount
from distributed_comfy.orchestrator.progress import Step
from distributed_comfy.orchestrator.run import JobStart, SilentReporter
from distributed_comfy.orchestrator.servers import Servers

_REFRESH_HZ = 8
_WIDE = 110
"""Columns from which on bars are long, and seeds are shown."""
_LONG_BAR, _SHORT_BAR = 32, 10
_WORKERS_SHOWN = 24
_WORKERS_NAMED = 4
"""In a line."""
_HEARTBEAT_S = 15.0


@dataclass
class _Lane:
    """What one worker does now."""

    index: int | None = None
    value: int = 0
    maximum: int = 0
    items: int = 0
    seconds: float = 0.0
    """Engine time of its finished items."""


@dataclass
class _View:
    """Everything that is shown; changed by the reporter's threads under its lock."""

    title: str = ""
    count: JobCount = field(default_factory=JobCount)
    seeds: Mapping[int, str] = field(default_factory=dict)
    before: Collection[int] = ()
    """Indexes of items that an earlier run made."""
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    lanes: dict[str, _Lane] = field(default_factory=dict)
    tiles_began: float = 0.0
    tiles_before: int = 0
    """Tiles that an earlier run made: they say nothing about how fast this one is."""

    def plan(self, tiles: Sequence[Sequence[int]]) -> None:
        """The tiles of each item are known."""
        self.count.plan(tiles)
        self.tiles_began, self.tiles_before = time.monotonic(), self.count.tiles_done

    def is_old(self, index: int) -> bool:
        """Whether an item that comes is of an earlier run; tiles that come before they are planned are."""
        return index in self.before or (self.count.is_tile(index) and not self.count.tiles)


class RunProgress(SilentReporter):
    """A `Reporter` for people; a context, so that the display is taken down whatever happens.

    Args:
        output: where lines go.
        title: what the job is called in the display.
        heartbeat_s: elsewhere than on a terminal, a line says how far it is where nothing was said for so long.
        preview: shows an upscale in a file.
    """

    def __init__(
        self, output: Output, title: str = "", heartbeat_s: float = _HEARTBEAT_S, preview: CanvasPreview | None = None
    ) -> None:
        self._output, self._preview = output, preview
        self._lock = threading.Lock()
        self._view = _View(title)
        self._live: Live | None = None
        self._heartbeat_s = heartbeat_s
        self._ended: threading.Event | None = None

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finish()

    def finish(self) -> None:
        """Leave the last state of the display where it is."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
        if self._ended is not None:
            self._ended.set()

    def retitle(self, title: str) -> None:
        """What the next job is called."""
        with self._lock:
            self._view.title = title

    # -- Reporter ------------------------------------------------------------------------------------------------------
    def connected(self, servers: Servers) -> None:
        """See `Reporter`; so for all below."""
        self._output.remark(f"connected to {servers.shown}", "dim")

    def workers_starting(self, count: int) -> None:
        """Say what takes so long."""
        self._output.remark(f"starting {_counted(count, 'worker')}", "dim")

    def workers_ready(self, names: list[str]) -> None:
        """Say that it is over."""
        self._output.remark(f"ready: {', '.join(names)}", "dim")

    def submitted(self, start: JobStart) -> None:
        """Begin the display of a job."""
        self.finish()
        for warning in start.warnings:
            self._output.warn(warning)
        record = start.record
        if self._preview is not None and record.tiles is None:
            self._output.warn(f"--preview: the prompt has no upscale, so {self._preview.path} is not written")
        if start.resumed:
            here = _here_already(JobCount(record), start.resumed_items)
            same = start.resumed == record.job_id
            which = f"with job {start.resumed}, which nobody collected" if same else f"where job {start.resumed} stopped"
            self._output.remark(f"goes on {which}: {here} here already (--fresh starts afresh)", "bold")
        with self._lock:
            self._view = _View(self._view.title or record.title or "prompt", JobCount(record), start.seeds, start.resumed_items)
        self._output.remark(f"job {record.job_id}: {_count(record)}", "bold")
        if self._output.remarks.is_terminal:
            self._live = Live(get_renderable=self._render, console=self._output.remarks, refresh_per_second=_REFRESH_HZ)
            self._live.start()
        else:
            self._ended = threading.Event()
            threading.Thread(target=self._beat, args=(self._ended,), name="heartbeat", daemon=True).start()

    def waiting(self, reason: str) -> None:
        """Say why nothing goes on."""
        self._output.warn(reason)

    def tiles_planned(self, tiles: Sequence[Sequence[int]]) -> None:
        """Count the tiles, too."""
        with self._lock:
            self._view.plan(tiles)
            count, before = self._view.count.tiles_total, self._view.tiles_before
        items = f" in {_counted(len(tiles), 'item')}" if len(tiles) != count else ""
        here = f", {before} here already" if before else ""
        self._output.remark(f"upscale: {_counted(count, 'tile')}{items}{here}", "dim")

    @property
    def watches_canvas(self) -> bool:
        """See `Reporter`."""
        return self._preview is not None

    def canvas(self, preview: NDArray[np.uint8]) -> None:
        """Write the picture."""
        if self._preview is not None:
            self._preview.show(preview)

    def step(self, step: Step) -> None:
        """Move a worker's bar."""
        with self._lock:
            lane = self._view.lanes.setdefault(step.worker, _Lane())
            if step.index not in self._view.count.here and step.maximum:
                lane.index, lane.value, lane.maximum = step.index, step.value, step.maximum

    def item_done(self, index: int, result: ItemResult) -> None:
        """Count an item."""
        with self._lock:
            view = self._view
            old = view.is_old(index)
            view.count.take(index)
            lane = view.lanes.setdefault(result.worker, _Lane()) if not old else _Lane()
            lane.items += 1
            lane.seconds += result.seconds
            if lane.index == index:
                lane.index = None
            number = view.count.number(index)
            line = f"  {number}{'  ' if number else ''}{_item(index, view)} on {result.worker} in {result.seconds:.2f} s"
            complete = view.count.complete
            if complete:
                view.ended = time.monotonic()
        if self._live is None and not old:  # how many are of an earlier run was said in one line
            self._output.remark(line)
        if complete:  # what comes now, such as the end of our own workers, is not the job's time
            self.finish()

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(min(1.0, self._heartbeat_s)):
            if time.monotonic() - self._output.spoke_at >= self._heartbeat_s:
                self._output.remark(f"  {self._state_line()}", "dim")

    def _state_line(self) -> str:
        """``8 of 20 items, w1: item 9 step 3/20``; of an upscale tiles, too."""
        with self._lock:
            view = self._view
            busy = [(name, lane) for name, lane in view.lanes.items() if lane.index is not None]
            parts = [f"{view.count.words()}{_left(view)}"]
            parts += [f"{name}: {_item(lane.index or 0, view)} step {lane.value}/{lane.maximum}" for name, lane in busy[:_WORKERS_NAMED]]
            hidden = len(busy) - _WORKERS_NAMED
            return ", ".join(parts) + (f", and {_counted(hidden, 'more worker')}" if hidden > 0 else "")

    # -- display -------------------------------------------------------------------------------------------------------
    def _render(self) -> RenderableType:
        with self._lock:
            view = self._view
            grid = Table.grid(padding=(0, 2))
            for _ in range(4):
                grid.add_column(no_wrap=True, overflow="ellipsis")
            bar_width = _LONG_BAR if self._output.remarks.width >= _WIDE else _SHORT_BAR
            elapsed = (view.ended or time.monotonic()) - view.began
            count = view.count
            bar = ProgressBar(max(1, count.total), count.done, width=bar_width)
            done = count.words() if bar_width == _LONG_BAR else f"{count.done} of {count.total}"
            grid.add_row(Text(view.title, "bold"), bar, done, f"{elapsed:.1f} s{_left(view)}")
            for name, lane in list(view.lanes.items())[:_WORKERS_SHOWN]:
                grid.add_row(Text(f"  {name}", "cyan"), *_lane_cells(lane, view, bar_width))
            hidden = len(view.lanes) - _WORKERS_SHOWN
            return Group(grid, Text(f"  and {_counted(hidden, 'more worker')}", "dim")) if hidden > 0 else grid


def _lane_cells(lane: _Lane, view: _View, bar_width: int) -> tuple[RenderableType, str, str]:
    mean = f"{lane.items} done, {lane.seconds / lane.items:.2f} s each" if lane.items else ""
    if lane.index is None:
        return Text("waiting", "dim"), "", mean
    name = _item(lane.index, view) if bar_width == _LONG_BAR else _item(lane.index, view).partition(" (")[0]
    return ProgressBar(max(1, lane.maximum), lane.value, width=bar_width), f"{name}  {lane.value}/{lane.maximum}", mean


def _left(view: _View) -> str:
    """The rate of the tiles that are done, and how long the others will take; nothing before there is one."""
    done, left = view.count.tiles_done - view.tiles_before, view.count.tiles_total - view.count.tiles_done
    if not done or not left:
        return ""
    each_s = (time.monotonic() - view.tiles_began) / done
    rate = f"{1 / each_s:.1f} tiles/s" if each_s < 1 else f"{each_s:.1f} s per tile"
    return f", {rate}, about {each_s * left:.0f} s left"


def _item(index: int, view: _View) -> str:
    if view.count.is_tile(index):
        return _tiles(index, view.count.tiles.get(index, ()))
    if index in view.count.stages:
        return view.count.stages[index]
    seed = view.seeds.get(index, "")
    return f"item {index} (seed {seed})" if seed else f"item {index}"


def _here_already(count: JobCount, indexes: Collection[int]) -> str:
    """``5 of 8 items``, ``the image to upscale and some of its tiles``: how many tiles is known once they are planned."""
    items = sum(not count.is_tile(index) and index not in count.stages for index in indexes)
    parts = [f"{items} of {_counted(count.items_total, 'item')}"] * bool(items or not indexes)
    parts += [name for index, name in count.stages.items() if index in indexes]
    return _listed([*parts, *["some of its tiles"] * any(map(count.is_tile, indexes))])


def _tiles(index: int, numbers: Sequence[int]) -> str:
    if not numbers:  # of an earlier run, before the tiles are planned
        return f"item {index}"
    if len(numbers) == 1:
        return f"tile {numbers[0]}"
    if len(numbers) == numbers[-1] - numbers[0] + 1:
        return f"tiles {numbers[0]} to {numbers[-1]}"
    return f"{len(numbers)} tiles ({', '.join(map(str, numbers))})"


def _count(record: JobRecord) -> str:
    count = JobCount(record)
    parts = [_counted(count.items_total, "item")] * bool(count.items_total)
    parts += [PREPARE] * (PREPARE in count.stages.values()) + ["its tiles"] * (record.tiles is not None)
    return _listed([*parts, *["a last stage"] * record.has_last_stage])


def _listed(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
