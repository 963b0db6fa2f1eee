"""Files of workers in ComfyUI's folders: its own numbers, no gaps, nothing written over, also while the master's nodes save."""
from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.comfyui.placed_files import JOURNAL, FilePlacer, MadeFile, is_partial, names_files, with_places
from distributed_comfy.comfyui.saves import SaveWatch
from distributed_comfy.errors import OutputUnwritable, RunInterrupted
from distributed_comfy.messages import FileRef


class Nodes:
    """One node at a time, as ComfyUI runs them."""

    def __init__(self) -> None:
        self.node: tuple[str, str] | None = None

    def current(self) -> tuple[str, str] | None:
        return self.node

    def is_running(self, prompt_id: str, node_id: str) -> bool:
        return self.node == (prompt_id, node_id)


def look_at_counter(filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0) -> tuple[str, str, int, str, str]:
    """Counts as ComfyUI does: one more than the highest ``prefix_NUMBER_`` there is."""
    folder = os.path.join(output_dir, os.path.dirname(filename_prefix))
    os.makedirs(folder, exist_ok=True)
    stem = os.path.basename(filename_prefix)
    found = (re.match(re.escape(stem) + r"_(\d+)_", name) for name in os.listdir(folder))
    counter = max((int(match[1]) for match in found if match), default=0) + 1
    return folder, stem, counter, os.path.dirname(filename_prefix), filename_prefix


class Place:
    """Output and temp folder, and what lies on the workers' side."""

    def __init__(self, root: Path) -> None:
        self.folders = {name: root / name for name in ("output", "temp")}
        self.made = root / "made"
        for folder in (*self.folders.values(), self.made):
            folder.mkdir()
        self.nodes = Nodes()
        self.paths = SimpleNamespace(get_save_image_path=look_at_counter)
        self.placer = FilePlacer(SaveWatch(self.paths, self.nodes), self.folders.__getitem__)
        self._count = 0

    def make(self, name: str, content: str = "", folder: Any = "output") -> MadeFile:
        self._count += 1
        path = self.made / f"{self._count}.blob"
        path.write_text(content or name)
        return MadeFile(FileRef(name, "image/png", "", path.stat().st_size, "blob", folder, "9"), path)

    def names(self, folder: str = "output") -> list[str]:
        root = self.folders[folder]
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_batch_goes_on_where_the_counter_of_the_folder_stands(place: Place) -> None:
    (place.folders["output"] / "ComfyUI_00007_.png").write_text("of the master")
    placed = place.placer.place([place.make(f"ComfyUI_{number:05}_.png") for number in (1, 2)])
    assert place.names() == ["ComfyUI_00007_.png", "ComfyUI_00008_.png", "ComfyUI_00009_.png"]
    assert placed["output", "ComfyUI_00002_.png"].read_text() == "ComfyUI_00002_.png"
    assert (place.folders["output"] / "ComfyUI_00007_.png").read_text() == "of the master"


def test_endings_share_a_counter_and_subfolders_and_prefixes_have_their_own(place: Place) -> None:
    names = ["a/x_00001_.png", "a/x_00002_.webm", "x_00001_.png", "y_00001_.flac"]
    place.placer.place([place.make(name) for name in names])
    placed = place.placer.place([place.make(name) for name in names])
    again = ["a/x_00003_.png", "a/x_00004_.webm", "x_00002_.png", "y_00002_.flac"]
    assert place.names() == sorted(names + again)
    assert placed["output", "a/x_00002_.webm"] == place.folders["output"] / "a" / "x_00004_.webm"


def test_previews_go_to_temp(place: Place) -> None:
    place.placer.place([place.make("ComfyUI_temp_abcde_00001_.png", folder="temp")])
    assert (place.names(), place.names("temp")) == ([], ["ComfyUI_temp_abcde_00001_.png"])


def test_files_of_one_number_stay_together(place: Place) -> None:
    clip = ["clip_00001.png", "clip_00001.mp4", "clip_00001-audio.mp4"]
    for _ in range(2):
        place.placer.place([place.make(name) for name in clip])
    assert place.names() == sorted(clip + [name.replace("00001", "00002") for name in clip])


def test_a_number_that_is_no_counter_stays_and_a_name_that_is_taken_is_counted_on(place: Place) -> None:
    for _ in range(2):
        place.placer.place([place.make("shot_20251128.png"), place.make("notes.txt")])
    assert place.names() == ["notes-1.txt", "notes.txt", "shot_20251128-1.png", "shot_20251128.png"]


def test_many_prompts_at_once_leave_neither_gaps_nor_overwrite(place: Place) -> None:
    def prompt(number: int) -> None:
        place.placer.place([place.make(f"ComfyUI_{count:05}_.png", f"{number} {count}") for count in (1, 2, 3)])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(prompt, range(20)))
    assert place.names() == [f"ComfyUI_{number:05}_.png" for number in range(1, 61)]
    contents = [(place.folders["output"] / name).read_text() for name in place.names()]
    assert sorted(contents) == sorted(f"{number} {count}" for number in range(20) for count in (1, 2, 3))


def save_slowly(place: Place, count: int, pause_s: float) -> None:
    """A node of the master: looks once, then writes over whatever lies there, as SaveImage does."""
    place.nodes.node = ("p", "9")
    folder, stem, counter, _, _ = place.paths.get_save_image_path("ComfyUI", str(place.folders["output"]))
    for number in range(counter, counter + count):
        time.sleep(pause_s)
        Path(folder, f"{stem}_{number:05}_.png").write_text("of the master")
    place.nodes.node = None


def test_a_file_waits_until_the_node_that_saves_under_its_name_is_done(place: Place) -> None:
    saving = threading.Thread(target=save_slowly, args=(place, 4, 0.05))
    saving.start()
    wait_for(lambda: place.nodes.node is not None)
    time.sleep(0.02)
    placed = place.placer.place([place.make("ComfyUI_00001_.png", "of a worker")])
    saving.join()
    assert placed["output", "ComfyUI_00001_.png"].name == "ComfyUI_00005_.png"
    contents = [(place.folders["output"] / name).read_text() for name in place.names()]
    assert contents == ["of the master"] * 4 + ["of a worker"]


def test_a_comfyui_that_does_not_tell_what_runs_saves_all_the_same(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    def unknown() -> None:
        raise ModuleNotFoundError("comfy_execution.utils")

    place.nodes.current = unknown  # type: ignore[method-assign, assignment]
    assert place.paths.get_save_image_path("x", str(place.folders["output"]))[1:3] == ("x", 1)
    assert "a save of this ComfyUI is not seen" in caplog.text


def test_a_save_under_another_name_is_not_waited_for(place: Place) -> None:
    place.nodes.node = ("p", "9")
    place.paths.get_save_image_path("other", str(place.folders["output"]))
    began = time.monotonic()
    place.placer.place([place.make("ComfyUI_00001_.png")])
    assert time.monotonic() - began < 1


def test_the_wait_ends_with_comfyui(place: Place) -> None:
    place.nodes.node = ("p", "9")
    place.paths.get_save_image_path("ComfyUI", str(place.folders["output"]))
    threading.Timer(0.1, place.placer.stop.set).start()
    with pytest.raises(RunInterrupted):
        place.placer.place([place.make("ComfyUI_00001_.png")])
    assert place.names() == []


def test_names_that_would_leave_the_folder_stay_in_it(place: Place) -> None:
    place.placer.place([place.make("../../evil_00001_.png")])
    assert place.names() == ["evil_00001_.png"]


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_link_that_leads_out_is_refused_and_nothing_is_left(place: Place, tmp_path: Path) -> None:
    (place.folders["output"] / "out").symlink_to(tmp_path)
    with pytest.raises(OutputUnwritable):
        place.placer.place([place.make("a_00001_.png"), place.make("out/a_00001_.png")])
    assert place.names() == []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# -- what nodes show ----------------------------------------------------------------------------------------------------
def test_what_nodes_show_names_the_files_as_they_are_called_here(place: Place) -> None:
    file = {"filename": "x_00001_.png", "subfolder": "a", "type": "output"}
    clip = {**file, "fullpath": "/w/x"}
    ui = {"images": [file, {**file, "filename": "gone.png"}], "text": ["words"], "animated": (True,), "gifs": [clip]}
    placed = {("output", "a/x_00001_.png"): place.folders["output"] / "b" / "x_00005_.png"}
    shown = with_places(ui, placed, place.folders.__getitem__)
    here = {"filename": "x_00005_.png", "subfolder": "b", "type": "output"}
    assert shown["images"] == [here, {**file, "filename": "gone.png"}]
    assert shown["gifs"] == [{**here, "fullpath": str(placed["output", "a/x_00001_.png"])}]
    assert (shown["text"], shown["animated"]) == (["words"], (True,))
    of_windows = with_places({"images": [{**file, "subfolder": ".\\a"}]}, placed, place.folders.__getitem__)
    assert of_windows["images"] == [here]
    assert names_files(ui) and not names_files({"text": ["words"]}) and not names_files(None)


def test_a_journal_names_each_file_before_it_is_there(place: Place, tmp_path: Path) -> None:
    journal = tmp_path / JOURNAL
    place.placer.place([place.make("a_00001_.png"), place.make("sub/b_00001_.png")], journal)
    lines = [Path(line) for line in journal.read_text().splitlines()]
    assert [path.parent for path in lines] == [place.folders["output"], place.folders["output"] / "sub"]
    assert all(is_partial(path) and not path.exists() for path in lines)
