"""Files of a collector with a ``save_prefix``: there while the job runs, by item, beside what nodes save, and never twice."""
from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distributed_comfy.collector.file_formats import to_pixels
from distributed_comfy.collector.naming import filled_prefix
from distributed_comfy.collector.save import FileMetadata
from distributed_comfy.comfyui.arrivals import Arrivals
from distributed_comfy.comfyui.saves import SaveWatch
from distributed_comfy.errors import OutputUnwritable, PromptMalformed
from distributed_comfy.planning.plan import PlanOptions, plan_job
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tests.collected_jobs import COLLECTOR, image, image_result, job_record, open_spool
from tests.prompts import capability, parsed, txt2img
from tests.unit.test_placed_files import Nodes, look_at_counter

PROMPT = {"9": {"class_type": "DistributedCollector", "inputs": {"save_prefix": "pic"}}}


class Place:
    """ComfyUI's output folder, a job's spool, and nodes that save."""

    def __init__(self, root: Path) -> None:
        self.output, self.root = root / "output", root
        self.store, self.nodes = MemoryBlobStore(), Nodes()
        self.paths: Any = type("folder_paths", (), {"get_save_image_path": staticmethod(look_at_counter)})
        self.saves = SaveWatch(self.paths, self.nodes)
        self.spool = open_spool(root / "spool")

    def arrivals(self, items: int, prefix: str = "pic", *, asked: bool = True, **more: Any) -> Arrivals:
        record = job_record(items)
        record = replace(record, collectors=tuple(replace(plan, save_prefix=prefix, **more) for plan in record.collectors))
        found = Arrivals(self.spool, record, FileMetadata(PROMPT, seeds=tuple(map(str, range(items)))), self.output, self.saves)
        if asked:
            found.begin()
        return found

    def arrive(self, arrivals: Arrivals, *indexes: int) -> None:
        for index in indexes:
            self.spool.add(index, f"c{index}", image_result(self.store, f"c{index}", image(index)), self.store)
            arrivals.add(index)

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.output).as_posix() for path in self.output.rglob("*") if path.is_file())

    def is_saved(self, name: str, index: int) -> bool:
        with Image.open(self.output / name) as opened:
            return np.array_equal(np.asarray(opened), to_pixels(image(index)[0])) and opened.info["seed"] == str(index)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    found.spool.close()


def eventually(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_files_are_there_while_the_job_runs_and_are_shown_at_its_end(place: Place) -> None:
    arrivals = place.arrivals(3, "sub/%width%x%height%/pic")
    place.arrive(arrivals, 1, 0)
    side = image(0).shape
    folder = f"sub/{side[2]}x{side[1]}"
    eventually(lambda: place.names() == [f"{folder}/pic_00001_.png", f"{folder}/pic_00002_.png"])
    assert place.is_saved(f"{folder}/pic_00001_.png", 0) and place.is_saved(f"{folder}/pic_00002_.png", 1)
    place.arrive(arrivals, 2)
    shown = arrivals.shown(COLLECTOR)
    assert shown == {"images": [{"filename": f"pic_0000{n}_.png", "subfolder": folder, "type": "output"} for n in (1, 2, 3)]}
    assert arrivals.shown(COLLECTOR) == shown and arrivals.shown("another") == {}
    arrivals.close()
    assert place.names() == [f"{folder}/pic_0000{n}_.png" for n in (1, 2, 3)]


def test_without_a_prefix_nothing_is_saved_and_nothing_shown(place: Place) -> None:
    arrivals = place.arrivals(1, "")
    place.arrive(arrivals, 0)
    assert arrivals.shown(COLLECTOR) == {}
    arrivals.close()
    assert not place.output.exists()


def test_nothing_is_saved_of_a_prompt_whose_node_never_asks(place: Place) -> None:
    """ComfyUI has what it would give in its cache, or its user has taken it out of the queue."""
    arrivals = place.arrivals(2, asked=False)
    place.arrive(arrivals, 0, 1)
    time.sleep(0.2)
    arrivals.close()
    assert not place.output.exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("arrivals")]


def test_what_arrived_before_the_node_asked_is_saved_then(place: Place) -> None:
    arrivals = place.arrivals(2, asked=False)
    place.arrive(arrivals, 0)
    arrivals.begin()
    eventually(lambda: place.names() == ["pic_00001_.png"])
    place.arrive(arrivals, 1)
    assert len(arrivals.shown(COLLECTOR)["images"]) == 2


def test_a_result_that_is_replaced_by_a_later_claims_while_it_is_saved_is_saved_all_the_same(place: Place) -> None:
    arrivals = place.arrivals(1, asked=False)
    place.arrive(arrivals, 0)
    array, times = place.spool.array, []

    def replaced_first(index: int, ref: Any) -> Any:
        times.append(index)
        if len(times) == 1:
            place.spool.add(0, "later", image_result(place.store, "later", image(0)), place.store)
        return array(index, ref)

    place.spool.array = replaced_first  # type: ignore[method-assign]
    arrivals.begin()
    assert len(arrivals.shown(COLLECTOR)["images"]) == 1 and place.is_saved("pic_00001_.png", 0) and len(times) == 2


def test_a_fault_of_ours_is_told_at_the_node_and_keeps_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = place.arrivals(1)
    monkeypatch.setattr(place.spool, "array", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
    place.arrive(arrivals, 0)
    with pytest.raises(MemoryError, match="no room"):
        arrivals.shown(COLLECTOR)
    arrivals.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("save", "arrivals"))]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second disk here")
def test_the_output_folder_may_lie_on_another_disk_than_the_spool(place: Place) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="dc-test-") as folder:
        place.output = Path(folder)
        if place.output.stat().st_dev == place.root.stat().st_dev:
            pytest.skip("no second disk here")
        arrivals = place.arrivals(2)
        place.arrive(arrivals, 0, 1)
        assert len(arrivals.shown(COLLECTOR)["images"]) == 2
        assert place.names() == ["pic_00001_.png", "pic_00002_.png"] and place.is_saved("pic_00002_.png", 1)
        again = place.arrivals(2)
        for index in (0, 1):
            again.add(index)
        assert len(again.shown(COLLECTOR)["images"]) == 2 and len(place.names()) == 2, "what lies there is known again"
        arrivals.close()


def test_an_item_that_is_in_the_spool_and_was_not_told_yet_is_saved_too(place: Place) -> None:
    arrivals = place.arrivals(2)
    place.arrive(arrivals, 0)
    place.spool.add(1, "c1", image_result(place.store, "c1", image(1)), place.store)
    assert len(arrivals.shown(COLLECTOR)["images"]) == 2


def test_a_node_that_saves_under_the_same_name_is_waited_for_and_not_written_over(place: Place) -> None:
    """As SaveImage does: it asks once where the count stands, and then writes one file after the other over whatever lies there."""
    place.nodes.node = ("p", "save")
    folder, stem, counter, *_ = place.paths.get_save_image_path("pic", str(place.output))
    arrivals = place.arrivals(2)
    place.arrive(arrivals, 0, 1)
    time.sleep(0.3)
    assert place.names() == []
    for number in range(2):
        Path(folder, f"{stem}_{counter + number:05}_.png").write_text("a node's")
    place.nodes.node = None
    assert [one["filename"] for one in arrivals.shown(COLLECTOR)["images"]] == ["pic_00003_.png", "pic_00004_.png"]
    assert [(place.output / f"pic_0000{n}_.png").read_text() for n in (1, 2)] == ["a node's"] * 2


def test_a_prompt_that_ends_early_keeps_what_has_arrived_and_goes_on_behind_it(place: Place) -> None:
    first = place.arrivals(4)
    place.arrive(first, 0, 2)
    first.close()
    assert place.names() == ["pic_00001_.png", "pic_00002_.png"]
    before = {name: (place.output / name).stat().st_mtime_ns for name in place.names()}
    again = place.arrivals(4)
    for index in (0, 2):
        again.add(index)
    place.arrive(again, 1, 3)
    assert len(again.shown(COLLECTOR)["images"]) == 4
    assert place.names() == [f"pic_0000{n}_.png" for n in (1, 2, 3, 4)]
    assert all((place.output / name).stat().st_mtime_ns == at for name, at in before.items()), "what lies there is not written again"


def test_where_missing_items_are_repeated_so_are_their_files(place: Place) -> None:
    arrivals = place.arrivals(3, on_missing="repeat")
    place.arrive(arrivals, 0, 2)
    assert len(arrivals.shown(COLLECTOR)["images"]) == 3
    assert place.is_saved("pic_00001_.png", 0) and place.is_saved("pic_00002_.png", 0) and place.is_saved("pic_00003_.png", 2)


def test_what_cannot_be_saved_is_told_at_the_node_and_nothing_stays_running(place: Place) -> None:
    place.output.write_text("no folder")
    arrivals = place.arrivals(2)
    place.arrive(arrivals, 0, 1)
    with pytest.raises(OutputUnwritable, match="output"):
        arrivals.shown(COLLECTOR)
    arrivals.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("save", "arrivals"))]


def test_a_halt_waits_for_no_node(place: Place) -> None:
    place.nodes.node = ("p", "save")
    place.paths.get_save_image_path("pic", str(place.output))
    arrivals = place.arrivals(1)
    place.arrive(arrivals, 0)
    arrivals.halt()
    arrivals.close()
    assert place.names() == []


@pytest.mark.parametrize(
    ("prefix", "filled"),
    [("a/b", "a/b"), ("../x", "x"), ("%width%_%height%", "8_6"), ("%nothing%", "%nothing%"), ("con", "_con"), ("a\\b", "a/b")],
)
def test_a_prefix_stays_in_its_folder(prefix: str, filled: str) -> None:
    assert filled_prefix(prefix, 8, 6) == filled


def test_a_prefix_may_name_the_day() -> None:
    assert filled_prefix("%year%-%month%-%day%/x") in {time.strftime("%Y-%m-%d/x", time.localtime(time.time() - late)) for late in (0, 5)}


def test_the_plan_has_the_prefix() -> None:
    def planned(**collector: Any) -> tuple[str, tuple[str, ...]]:
        job = plan_job(parsed(txt2img(**collector)), PlanOptions(items=2), [capability()])
        return job.collectors[0].save_prefix, tuple(text for text in job.warnings if "save_prefix" in text)

    assert planned() == ("", ()) and planned(save_prefix=" a/b ") == ("a/b", ())
    with pytest.raises(PromptMalformed, match="save_prefix of collector collect is 5, not a text"):
        planned(save_prefix=5)


def test_files_of_a_job_without_metadata_say_nothing() -> None:
    assert FileMetadata({}).of_item(0) == {} and FileMetadata(PROMPT, seeds=("7",)).of_item(0) == {"prompt": PROMPT, "seed": 7}
