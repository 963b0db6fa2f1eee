"""What a job's node shows while it waits."""
from __future__ import annotations

from dataclasses import replace

from distributed_comfy.comfyui.progress import JobProgress
from distributed_comfy.messages import ItemResult
from distributed_comfy.orchestrator.progress import Step
from distributed_comfy.tile_stage import TileStage, ValuePlace
from tests.collected_jobs import job_record
from tests.tile_jobs import GEOMETRY


def test_nothing_is_known_before_the_job_is_queued() -> None:
    look = JobProgress().look()
    assert (look.done, look.total, look.text) == (0, 0, "")


def test_items_workers_and_steps_are_told() -> None:
    progress = JobProgress()
    progress.begin(job_record(3))
    progress.step(Step(0, "pc1-cuda0", "7", 5, 20))
    progress.step(Step(1, "pc2-cuda0", "7", 2, 20))
    assert progress.look().text == "0 of 3 items; pc1-cuda0 5/20; pc2-cuda0 2/20"
    progress.item_done(0, ItemResult(worker="pc1-cuda0"))
    look = progress.look()
    assert (look.done, look.total, look.text) == (1, 3, "1 of 3 items; pc2-cuda0 2/20")


def test_a_node_that_has_done_no_step_begins() -> None:
    progress = JobProgress()
    progress.begin(job_record(1))
    progress.step(Step(0, "pc1-cuda0", "7", 0, 1))
    assert progress.look().text == "0 of 1 items; pc1-cuda0 begins"


def test_a_late_step_of_an_item_that_is_here_is_not_shown() -> None:
    progress = JobProgress()
    progress.begin(job_record(1))
    progress.item_done(0, ItemResult(worker="a"))
    progress.step(Step(0, "a", "7", 20, 20))
    assert progress.look().text == "1 of 1 items"


def test_what_was_decided_for_the_user_is_told_to_its_end() -> None:
    progress = JobProgress()
    progress.begin(job_record(1), ["items of collector 9 is ignored"])
    progress.step(Step(0, "a", "7", 5, 20))
    assert progress.look().text == "0 of 1 items; a 5/20; items of collector 9 is ignored"
    progress.item_done(0, ItemResult(worker="a"))
    look = progress.look()
    assert (look.count, look.text) == ("1 of 1 items", "1 of 1 items; items of collector 9 is ignored")


def test_many_workers_are_counted() -> None:
    progress = JobProgress()
    progress.begin(job_record(9))
    for number in range(6):
        progress.step(Step(number, f"w{number}", "7", 1, 2))
    assert progress.look().text.endswith("w3 1/2; 2 more")


def test_a_preview_is_given_once() -> None:
    progress = JobProgress()
    progress.step(Step(0, "a", "7", preview=b"jpeg"))
    assert progress.look().preview == b"jpeg"
    assert progress.look().preview == b""


def test_an_upscale_is_counted_in_tiles_and_its_other_stages_have_names() -> None:
    """Nine tiles of one image: what makes the image, and what comes after the tiles, are none of them."""
    progress = JobProgress()
    tiles = TileStage("up", ValuePlace("first", "1~0", "value"), "t", ("up",), "up~pixels", "up~regions", "7", GEOMETRY)
    progress.begin(replace(job_record(1), items=2, has_last_stage=True, collectors=(), tiles=tiles, grows=True))
    progress.step(Step(0, "a", "7", 1, 4))
    assert progress.look().text == "the image to upscale; a 1/4" and progress.look().total == 0
    progress.item_done(0, ItemResult(worker="a"))
    assert progress.look().text == "cutting tiles"
    progress.tiles_planned([(0,), tuple(range(1, 9))])
    progress.item_done(3, ItemResult(worker="a"))
    look = progress.look()
    assert (look.done, look.total, look.text) == (8, 9, "8 of 9 tiles")
    progress.item_done(2, ItemResult(worker="a"))
    assert progress.look().text == "9 of 9 tiles, last stage"
    progress.item_done(1, ItemResult(worker="a"))
    look = progress.look()
    assert (look.done, look.total, look.text) == (9, 9, "9 of 9 tiles")


def test_what_lies_in_the_spool_counts_before_it_is_told() -> None:
    progress = JobProgress()
    progress.begin(job_record(2))
    progress.step(Step(1, "a", "7", 3, 20))
    progress.items_here([0, 1])
    progress.item_done(1, ItemResult(worker="a"))
    look = progress.look()
    assert (look.done, look.text) == (2, "2 of 2 items")
