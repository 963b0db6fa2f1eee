"""Which files the panel lists for a job: by its spool, by time, by ComfyUI's history; in folders that are large or change meanwhile."""
from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from distributed_comfy.collector.saved import LIST, SavedFiles
from distributed_comfy.errors import ResultNotHere
from distributed_comfy.panel import job_files
from distributed_comfy.panel.job_files import JobFiles
from distributed_comfy.panel.place import Place
from distributed_comfy.state.records import JobState, SpoolPlace
from tasks.cluster import Cluster
from tests.panel_contract import check, document

JOB, NEXT = "a" * 12, "b" * 12
NOW_S = time.time()
HOUR_S = 3600.0
DONE = JobState("done", created_ms=round((NOW_S - 30) * 1000), ended_ms=round((NOW_S - 10) * 1000))


class Master:
    """A ComfyUI that knows one prompt."""

    def __init__(self, saved: Sequence[str] | None, *, over: bool) -> None:
        self._saved, self._over = saved, over

    def files(self, _job_id: str) -> Sequence[str] | None:
        return self._saved

    def is_over(self, _job_id: str) -> bool:
        return self._over


class Rig:
    """A folder, a table of jobs that names it, and the panel's view of both."""

    def __init__(self, folder: Path) -> None:
        self.out, self.cache = folder / "out", folder / "cache"
        self.out.mkdir()
        self.spools = {JOB: SpoolPlace("pc1", str(self.out / ".distributed-comfy" / JOB), str(self.out))}
        self.jobs: dict[str, JobState] = {JOB: DONE}
        self.place = SimpleNamespace(settings=SimpleNamespace(host_name="pc1", cache_folder=self.cache), master=None, out=self.out)
        self.files = JobFiles(cast("Place", self.place), self._known)
        hosts = SimpleNamespace(now_ms=lambda: round(NOW_S * 1000))
        self.seeds: dict[int, str] = {}
        jobs = SimpleNamespace(spool=self.spools.get, specs=self._specs)
        self.cluster = cast("Cluster", SimpleNamespace(jobs=jobs, hosts=hosts))

    def _known(self) -> Mapping[str, JobState]:
        return self.jobs

    def _specs(self, _job_id: str) -> dict[int, Any]:
        return {index: SimpleNamespace(seed=seed) for index, seed in self.seeds.items()}

    def picture(self, name: str, seed: int | None, side_px: int = 8) -> Path:
        """A picture as our saver writes it."""
        path, chunks = self.write(name), PngInfo()
        if seed is not None:
            chunks.add_text("seed", json.dumps(seed))
        Image.new("1", (side_px, side_px)).save(path, "PNG", pnginfo=chunks)
        os.utime(path, (NOW_S - 20, NOW_S - 20))
        return path

    def write(self, name: str, age_s: float = 20.0) -> Path:
        """A file of so many seconds ago."""
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 3)
        os.utime(path, (NOW_S - age_s, NOW_S - age_s))
        return path

    def spool(self) -> Path:
        """Its folder, as it is while files are still saved."""
        folder = Path(self.spools[JOB].folder)
        folder.mkdir(parents=True)
        return folder

    def shown(self, job_id: str = JOB) -> dict[str, Any]:
        """What the page gets; each number of it fits the contract."""
        found = self.files.shown(self.cluster, job_id, self.jobs[job_id])
        assert found.keys() == {"results", "results_here", "results_host", "results_folder", "results_complete"}
        for each in found["results"]:
            check(document()["components"]["schemas"]["ResultFile"], each, "result")
        return found

    def names(self, job_id: str = JOB) -> list[str]:
        return [each["path"] for each in self.shown(job_id)["results"]]

    def gives(self, path: str, job_id: str = JOB) -> bool:
        try:
            return self.files.one(self.cluster, job_id, self.jobs[job_id], path) == self.out / path
        except ResultNotHere:
            return False


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Whose clocks stand still: the tests may have been collected long before they run."""
    monkeypatch.setattr(job_files, "time", SimpleNamespace(time=lambda: NOW_S))
    return Rig(tmp_path)


# -- by time -------------------------------------------------------------------------------------------------------------
def test_new_files_are_found_behind_thousands_of_old_ones(rig: Rig) -> None:
    for number in range(6000):
        rig.write(f"a{number:05}.png", HOUR_S)
    rig.write("z/deep.png")
    rig.write("zz.png")
    assert rig.names() == ["z/deep.png", "zz.png"]
    assert rig.gives("zz.png") and rig.gives("z/deep.png") and not rig.gives("a00000.png")


def test_one_file_is_given_without_a_look_at_all_others(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.write("one.png")
    monkeypatch.setattr(job_files, "_files_below", lambda _folder: pytest.fail("the folder was read"))
    assert rig.gives("one.png")


def test_files_that_vanish_while_the_folder_is_read_are_left_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        rig.write(f"{number:02}.png")
    whole = os.scandir

    class Vanishing:
        """Lists a folder, and removes every other file of it before anybody looks at one."""

        def __init__(self, folder: str) -> None:
            with whole(folder) as entries:
                self._entries = list(entries)
            for entry in sorted(self._entries, key=lambda entry: entry.name)[::2]:
                os.unlink(entry.path)

        def __enter__(self) -> Any:
            return iter(self._entries)

        def __exit__(self, *_: object) -> None:
            """Nothing is open."""

    monkeypatch.setattr(os, "scandir", Vanishing)
    assert rig.names() == [f"{number:02}.png" for number in range(1, 20, 2)]


def test_a_folder_that_cannot_be_read_to_its_end_is_read_as_far_as_that(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        rig.write(f"{number}.png")
    monkeypatch.setattr(job_files, "_MOST_FILES", 7)
    assert len(rig.names()) == 7
    monkeypatch.setattr(job_files, "_MOST_ENTRIES", 5)
    assert len(rig.names()) == 5


def test_the_next_run_into_the_same_folder_has_its_own_files(rig: Rig) -> None:
    rig.write("first.png", 12)
    rig.write("second.png", 2)
    rig.jobs[NEXT] = replace(DONE, created_ms=round((NOW_S - 5) * 1000), ended_ms=round((NOW_S - 1) * 1000))
    assert rig.names() == ["first.png", "second.png"]  # nothing says yet that the next one saves here
    rig.spools[NEXT] = replace(rig.spools[JOB], folder=str(rig.out / "no spool"))
    assert (rig.names(), rig.names(NEXT)) == (["first.png"], ["second.png"])
    assert rig.gives("first.png") and not rig.gives("second.png") and rig.gives("second.png", NEXT) and not rig.gives("first.png", NEXT)
    rig.spools[NEXT] = replace(rig.spools[NEXT], out=str(rig.out / "elsewhere"))
    assert rig.names() == ["first.png", "second.png"]


@pytest.mark.parametrize(
    "path",
    ["../secret", "a/../../secret", "..", "", ".", "link.png", "inside/secret", "/etc/passwd", "a\\b", "C:x", "x\0", "a//b.png", "./a.png"],
)
def test_nothing_but_a_file_of_the_list_is_given(rig: Rig, path: str) -> None:
    rig.write("a.png")
    rig.write("a/b.png")
    rig.write(".distributed-comfy/kept.png")
    (rig.out.parent / "secret").write_text("secret")
    (rig.out / "link.png").symlink_to(rig.out.parent / "secret")
    (rig.out / "inside").symlink_to(rig.out.parent)
    assert rig.gives("a.png") and rig.gives("a/b.png") and rig.names() == ["a/b.png", "a.png"]
    assert not rig.gives(path) and not rig.gives(".distributed-comfy/kept.png")


# -- by its spool --------------------------------------------------------------------------------------------------------
def test_while_its_spool_is_there_a_job_has_the_files_that_it_names_and_no_other(rig: Rig) -> None:
    rig.write("other.png", 15)
    mine, gone = rig.write("mine.png", 15), rig.write("gone.png", 15)
    folder = rig.spool()
    assert rig.names() == [] and not rig.shown()["results_complete"]
    saved = SavedFiles(folder, rig.out)
    saved.note("images 7 3 0 0", mine, mine)
    saved.note("file 1 0 output gone.png", gone, gone)
    gone.unlink()
    with (folder / LIST).open("a") as lines:
        lines.write('{"cut')
    assert rig.names() == ["mine.png"] and rig.gives("mine.png") and not rig.gives("other.png") and not rig.gives("gone.png")
    assert rig.shown()["results"][0]["item"] == 7


def test_later_the_seed_in_a_picture_says_of_which_item_it_is(rig: Rig) -> None:
    rig.seeds = {0: "41", 1: "42", 2: "5", 3: "5", 4: "", 5: "6"}
    rig.picture("upscaled.png", 6, side_px=14_000)  # more than Pillow opens
    for name, seed in (("a.png", 42), ("b.png", 41), ("c.png", 5), ("d.png", 77), ("e.png", None)):
        rig.picture(name, seed)
    rig.write("f.png")  # no picture at all
    rig.write("g.txt")
    assert {each["name"]: each["item"] for each in rig.shown()["results"]} == {
        "a.png": 1, "b.png": 0, "c.png": None, "d.png": None, "e.png": None, "f.png": None, "g.txt": None,
        "upscaled.png": 5,
    }  # fmt: skip


@pytest.mark.parametrize("line", ["5", "[]", '{"out": 5}', json.dumps({"key": "k"})])
def test_a_list_that_makes_no_sense_is_as_none(rig: Rig, line: str) -> None:
    rig.write("mine.png")
    (rig.spool() / LIST).write_text(line + "\n")
    assert rig.names() in ([], ["mine.png"])


def test_the_list_is_complete_when_the_job_has_ended_and_all_is_saved(rig: Rig) -> None:
    rig.write("mine.png")
    folder = rig.spool()
    assert not rig.shown()["results_complete"]
    folder.rmdir()
    assert rig.shown()["results_complete"] and rig.names() == ["mine.png"]
    rig.jobs[JOB] = replace(DONE, state="running", ended_ms=0)
    assert not rig.shown()["results_complete"] and rig.names() == ["mine.png"]


def test_a_spool_that_is_kept_does_not_keep_the_list_open_for_ever(rig: Rig) -> None:
    rig.spool()
    rig.jobs[JOB] = replace(DONE, created_ms=round((NOW_S - 200) * 1000), ended_ms=round((NOW_S - 100) * 1000))
    assert rig.shown()["results_complete"]


def test_results_of_another_host_are_said_to_be_there(rig: Rig) -> None:
    rig.spools[JOB] = replace(rig.spools[JOB], host="pc9")
    found = rig.shown()
    assert (found["results_here"], found["results_host"], found["results"]) == (False, "pc9", [])
    del rig.spools[JOB]
    assert rig.shown()["results_host"] == ""


# -- of a ComfyUI --------------------------------------------------------------------------------------------------------
def test_a_prompt_that_still_runs_has_its_results_here_and_none_yet(rig: Rig) -> None:
    rig.place.master = Master([], over=False)
    found = rig.shown()
    assert (found["results_here"], found["results_host"], found["results_complete"], found["results"]) == (True, "pc1", False, [])
    saved = rig.write("ComfyUI_00001_.png")
    rig.place.master = Master([str(saved), str(saved), str(rig.out / "gone.png")], over=True)
    found = rig.shown()
    assert found["results_complete"] and [each["name"] for each in found["results"]] == ["ComfyUI_00001_.png"]
    assert rig.gives("ComfyUI_00001_.png") and not rig.gives("gone.png")


def test_a_prompt_that_ends_during_the_look_has_all_its_files_or_is_not_complete(rig: Rig) -> None:
    class Ending(Master):
        """It saves its picture, and is over, right after it was first asked anything."""

        asked = 0

        def files(self, job_id: str) -> Sequence[str] | None:
            self.asked += 1
            return super().files(job_id) if self.asked > 1 else []

        def is_over(self, _job_id: str) -> bool:
            self.asked += 1
            return self.asked > 1

    rig.place.master = Ending([str(rig.write("late.png"))], over=True)
    found = rig.shown()
    assert not found["results_complete"] or [each["name"] for each in found["results"]] == ["late.png"]


def test_a_prompt_without_files_or_from_before_a_restart_is_not_said_to_be_elsewhere(rig: Rig) -> None:
    rig.place.master = Master([], over=True)
    found = rig.shown()
    assert found["results_here"] and found["results_complete"] and found["results"] == []
    rig.place.master = Master(None, over=True)
    rig.spools[JOB] = SpoolPlace("pc1", str(rig.cache / "jobs" / JOB), str(rig.cache / "jobs"))
    found = rig.shown()
    assert (found["results_here"], found["results_host"], found["results"]) == (True, "pc1", []) and not rig.gives("x.png")
