"""How a run is shown while it goes: bars on a terminal, lines elsewhere."""
from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from distributed_comfy.cli.canvas_preview import CanvasPreview
from distributed_comfy.cli.output import Output
from distributed_comfy.cli.progress import RunProgress, _tiles
from distributed_comfy.messages import ItemResult, JobRecord
from distributed_comfy.orchestrator.progress import Step
from distributed_comfy.orchestrator.run import JobStart, SilentReporter
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.tile_stage import TileStage, ValuePlace
from tests.tile_jobs import GEOMETRY


class Screen(Output):
    """Keeps what is printed."""

    def __init__(self, *, terminal: bool, width: int = 160) -> None:
        super().__init__()
        self.file = io.StringIO()
        self.remarks = Console(file=self.file, force_terminal=terminal, width=width, highlight=False, markup=False, legacy_windows=False)

    @property
    def lines(self) -> list[str]:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.file.getvalue()).replace("\r", "\n").splitlines()


def job(items: int, *, last: bool = False) -> JobStart:
    record = JobRecord("abcdefabcdef", "ann", 5, items, (), "", has_last_stage=last, title="cats.json")
    return JobStart(record, {index: str(100 + index) for index in range(items)}, ("only so much",))


def result(worker: str, seconds: float = 1.0) -> ItemResult:
    return ItemResult(worker=worker, seconds=seconds)


def test_elsewhere_than_on_a_terminal_each_item_is_one_line() -> None:
    screen = Screen(terminal=False)
    with RunProgress(screen) as progress:
        progress.connected(Servers("redis://:secret@host:6379/0", "", embedded=True))
        progress.workers_starting(1)
        progress.workers_ready(["w1"])
        progress.submitted(job(2))
        progress.step(Step(0, "w1", "3", 5, 10))
        progress.item_done(1, result("w1", 0.25))
        progress.item_done(0, result("w2", 2))
    assert screen.lines == [
        "connected to embedded Redis at redis://:***@host:6379/0",
        "starting 1 worker",
        "ready: w1",
        "note: only so much",
        "job abcdefabcdef: 2 items",
        "  1/2  item 1 (seed 101) on w1 in 0.25 s",
        "  2/2  item 0 (seed 100) on w2 in 2.00 s",
    ]


def test_the_last_stage_is_not_shown_as_one_of_the_seeds() -> None:
    screen = Screen(terminal=False)
    with RunProgress(screen) as progress:
        progress.submitted(job(2, last=True))
        progress.item_done(0, result("w1"))
        progress.item_done(1, result("w1"))
    assert screen.lines[-2:] == ["  1/1  item 0 (seed 100) on w1 in 1.00 s", "  last stage on w1 in 1.00 s"]


def upscale() -> JobStart:
    """One item that makes the image, then a last stage; tiles from index 2 on."""
    start = job(2, last=True)
    tiles = TileStage("up", ValuePlace("first", "1~0", "value"), "t", ("up",), "up~pixels", "up~regions", "7", GEOMETRY)
    return replace(start, record=replace(start.record, tiles=tiles, grows=True))


def test_an_upscale_is_counted_in_tiles_however_many_an_item_has() -> None:
    screen = Screen(terminal=False)
    with RunProgress(screen) as progress:
        progress.submitted(upscale())
        progress.item_done(0, result("w1"))
        progress.tiles_planned([(0, 2, 4), (1,)])
        progress.item_done(2, result("w1"))
        progress.item_done(2, result("w1"))
        progress.item_done(3, result("w2"))
        progress.item_done(1, result("w1"))
    assert screen.lines[-6:] == [
        "  the image to upscale on w1 in 1.00 s",
        "upscale: 4 tiles in 2 items",
        "  3/4  3 tiles (0, 2, 4) on w1 in 1.00 s",
        "  3/4  3 tiles (0, 2, 4) on w1 in 1.00 s",
        "  4/4  tile 1 on w2 in 1.00 s",
        "  last stage on w1 in 1.00 s",
    ]


@pytest.mark.parametrize(("age_s", "words"), [(1.0, "3.0 tiles/s, about 0 s left"), (30.0, "10.0 s per tile, about 10 s left")])
def test_the_line_of_an_upscale_tells_rate_and_time_left(age_s: float, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("distributed_comfy.cli.progress.time.monotonic", lambda: now[0])
    screen = Screen(terminal=True)
    with RunProgress(screen) as progress:
        progress.submitted(replace(upscale(), record=replace(upscale().record, items=1, has_last_stage=False)))
        progress.item_done(0, result("w1"))
        progress.tiles_planned([(0,), (1,), (2,), (3,)])
        now[0] += age_s
        for index in (1, 2, 3):
            progress.item_done(index, result("w1"))
    assert words in screen.lines[-2]


def test_what_an_earlier_run_made_is_told_in_one_line_and_not_item_by_item() -> None:
    screen = Screen(terminal=False)
    with RunProgress(screen) as progress:
        progress.submitted(replace(upscale(), resumed="fedcbafedcba", resumed_items=frozenset({0, 2})))
        progress.item_done(0, result("w1"))
        progress.item_done(2, result("w1"))
        progress.tiles_planned([(0, 1), (2,)])
        progress.item_done(3, result("w1"))
        progress.item_done(1, result("w1"))
    assert screen.lines[1:] == [
        "goes on where job fedcbafedcba stopped: the image to upscale and some of its tiles here already (--fresh starts afresh)",
        "job abcdefabcdef: the image to upscale, its tiles and a last stage",
        "upscale: 3 tiles in 2 items, 2 here already",
        "  3/3  tile 2 on w1 in 1.00 s",
        "  last stage on w1 in 1.00 s",
    ]


def test_items_of_an_earlier_run_are_one_line_too() -> None:
    screen = Screen(terminal=False)
    with RunProgress(screen) as progress:
        progress.submitted(replace(job(4, last=True), resumed="fedcbafedcba", resumed_items=frozenset({0, 2})))
        for index in (0, 2, 1):
            progress.item_done(index, result("w1"))
    assert screen.lines[1:] == [
        "goes on where job fedcbafedcba stopped: 2 of 3 items here already (--fresh starts afresh)",
        "job abcdefabcdef: 3 items and a last stage",
        "  3/3  item 1 (seed 101) on w1 in 1.00 s",
    ]


def test_the_rate_is_that_of_this_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 of 200 tiles are here; one more takes 10 s."""
    now = [1000.0]
    monkeypatch.setattr("distributed_comfy.cli.progress.time.monotonic", lambda: now[0])
    screen = Screen(terminal=False)
    with RunProgress(screen) as progress:
        progress.submitted(replace(upscale(), record=replace(upscale().record, items=1, has_last_stage=False)))
        progress.item_done(0, result("w1"))
        for index in range(1, 101):
            progress.item_done(index, result("w1"))
        progress.tiles_planned([(number,) for number in range(200)])
        assert progress._state_line() == "100 of 200 tiles", "no rate yet"
        now[0] += 10
        progress.item_done(101, result("w1"))
        assert progress._state_line() == "101 of 200 tiles, 10.0 s per tile, about 990 s left"


@pytest.mark.parametrize(("numbers", "words"), [
    ((7,), "tile 7"), ((4, 5), "tiles 4 to 5"), ((4, 5, 6), "tiles 4 to 6"), ((0, 2, 4), "3 tiles (0, 2, 4)"), ((), "item 2"),
])  # fmt: skip
def test_the_tiles_of_an_item_are_named(numbers: tuple[int, ...], words: str) -> None:
    assert _tiles(2, numbers) == words


def test_elsewhere_than_on_a_terminal_a_line_now_and_then_says_how_far_it_is() -> None:
    screen = Screen(terminal=False)
    with RunProgress(screen, heartbeat_s=0.05) as progress:
        progress.submitted(job(3))
        progress.item_done(0, result("w2"))
        progress.step(Step(1, "w1", "3", 5, 10))
        deadline = time.monotonic() + 5
        while len(screen.lines) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert screen.lines[3] == "  1 of 3 items, w1: item 1 (seed 101) step 5/10"
    after = len(screen.lines)
    time.sleep(0.15)
    assert len(screen.lines) == after, "it ends with the display"


def test_what_prevents_progress_is_said() -> None:
    screen = Screen(terminal=False)
    RunProgress(screen).waiting("no worker is left")
    assert screen.lines == ["note: no worker is left"]


@pytest.mark.parametrize(
    ("items", "last", "words"), [(1, False, "1 item"), (2, True, "1 item and a last stage"), (9, True, "8 items and a last stage")]
)
def test_a_job_is_counted_in_items(items: int, last: bool, words: str) -> None:
    screen = Screen(terminal=False)
    RunProgress(screen).submitted(job(items, last=last))
    assert screen.lines[-1] == f"job abcdefabcdef: {words}"


def shown(screen: Screen, what: Callable[[RunProgress], object]) -> str:
    """The display after some events, the last time it was drawn."""
    progress = RunProgress(screen, "cats")
    progress.submitted(job(3))
    what(progress)
    progress.finish()
    return "\n".join(screen.lines)


def test_on_a_terminal_every_worker_has_a_bar_with_its_item_and_steps() -> None:
    text = shown(Screen(terminal=True), lambda progress: progress.step(Step(2, "w1", "3", 5, 10)))
    assert re.search(r"cats .* 0 of 3 ", text)
    assert re.search(r"  w1 .* item 2 \(seed 102\)  5/10", text)


def test_on_a_terminal_finished_items_are_counted_and_their_worker_waits() -> None:
    def events(progress: RunProgress) -> None:
        progress.step(Step(0, "w1", "3", 9, 10))
        progress.item_done(0, result("w1", 2))
        progress.step(Step(0, "w1", "3", 10, 10))  # late: the item has arrived
        progress.item_done(1, result("w1", 4))

    text = shown(Screen(terminal=True), events)
    assert re.search(r"cats .* 2 of 3 ", text)
    assert re.search(r"  w1 +waiting +2 done, 3.00 s each", text)


def test_the_display_ends_with_the_last_item() -> None:
    screen = Screen(terminal=True)
    progress = RunProgress(screen)
    progress.submitted(job(1))
    progress.item_done(0, result("w1"))
    before = len(screen.file.getvalue())
    progress.finish()
    assert len(screen.file.getvalue()) == before, "nothing is drawn any more"
    assert "cats.json" in "\n".join(screen.lines) and "1 of 1" in "\n".join(screen.lines)


def test_on_a_narrow_terminal_every_row_is_one_line() -> None:
    screen = Screen(terminal=True, width=80)
    progress = RunProgress(screen)
    start = job(12)
    seeds = {index: str(18_446_744_073_709_551_000 + index) for index in range(12)}
    progress.submitted(JobStart(replace(start.record, title="a-rather-long-name-of-a-prompt.json"), seeds))
    progress.item_done(0, result("gpu-host-number-12-run12345-1"))
    progress.step(Step(3, "gpu-host-number-12-run12345-1", "3", 5, 10))
    before = len(screen.file.getvalue())
    progress.finish()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.file.getvalue()[before:]).replace("\r", "\n").splitlines()
    rows = [row for row in drawn if row.strip()]
    assert len(rows) == 2 and all(len(row) <= 80 for row in rows), rows
    assert "1 of 12" in rows[0] and "5/10" in rows[1]


def test_hundreds_of_workers_do_not_fill_the_screen() -> None:
    def events(progress: RunProgress) -> None:
        for number in range(100):
            progress.step(Step(0, f"w{number}", "3", 1, 10))

    text = shown(Screen(terminal=True), events)
    assert "and 76 more workers" in text and "w99" not in text


def test_the_canvas_is_watched_only_where_somebody_does(tmp_path: Path) -> None:
    class Watcher(SilentReporter):
        def canvas(self, preview: object) -> None:
            """Look."""

    assert Watcher().watches_canvas and not SilentReporter().watches_canvas
    screen = Screen(terminal=False)
    assert not RunProgress(screen).watches_canvas and RunProgress(screen, preview=CanvasPreview(tmp_path / "x.png")).watches_canvas


def test_a_preview_of_a_prompt_without_an_upscale_is_answered_with_a_note(tmp_path: Path) -> None:
    for start, told in ((job(1), True), (upscale(), False)):
        screen = Screen(terminal=False, width=1000)
        with RunProgress(screen, preview=CanvasPreview(tmp_path / "x.png")) as progress:
            progress.submitted(start)
        note = f"note: --preview: the prompt has no upscale, so {tmp_path / 'x.png'} is not written"
        assert (note in screen.lines) == told
