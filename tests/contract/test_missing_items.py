"""``on_missing``: what becomes of a job of which some items fail for good, on both engines."""
from __future__ import annotations

from typing import Any

import numpy
import pytest

from distributed_comfy.errors import JobFailed, NodeFailed
from distributed_comfy.messages import Prompt
from tests.cluster_rig import Rig, seeds_of
from tests.prompts import node, out, without


def job(bad_seed: int, **collector: Any) -> Prompt:
    """Four seeds from 100 on, of which one brings no luck; a record of what was collected."""
    return {
        "seed": node("DistributedSeed", seed=100),
        "image": node("RuleImage", seed=out("seed"), width=16, height=8, batch_size=1, channels=3),
        "bad": node("RuleFail", images=out("image"), seed=out("seed"), bad_seed=bad_seed),
        "collect": node("DistributedCollector", images=out("bad"), load_balance=False, items=4, **collector),
        "record": node("RuleRecord", images=out("collect"), label="last"),
    }


def recorded(report: Any) -> list[int]:
    return seeds_of(numpy.array(report.record("last")["images"], numpy.float32))


@pytest.mark.parametrize(("bad_seed", "on_missing", "expected"), [
    (102, "drop", [100, 101, 103]), (102, "repeat", [100, 101, 101, 103]),
    (100, "repeat", [101, 101, 102, 103]), (103, "drop", [100, 101, 102]),
])  # fmt: skip
def test_the_last_stage_runs_with_what_is_there(rig: Rig, bad_seed: int, on_missing: str, expected: list[int]) -> None:
    report = rig.run(job(bad_seed, on_missing=on_missing))
    assert recorded(report) == expected
    assert list(report.done.missing) == [bad_seed - 100]
    (error,) = report.done.missing.values()
    assert isinstance(error, NodeFailed) and "brings no luck" in str(error)


def test_without_being_asked_a_job_fails_with_its_first_item(rig: Rig) -> None:
    for prompt, options in ((job(102), {}), (job(102, on_missing="error"), {}), (job(102, on_missing="drop"), {"on_missing": "error"})):
        report = rig.run(prompt, **options)
        assert isinstance(report.error, JobFailed) and report.error.index == 2
        assert report.delivery is not None and not report.delivery.missing


def test_images_that_we_save_leave_no_gap_or_repeat_the_last_good_one(rig: Rig) -> None:
    names = [f"ComfyUI_{number:05}_.png" for number in range(1, 5)]
    for on_missing, items in (("drop", [0, 2, 3]), ("repeat", [0, 0, 2, 3])):
        report = rig.run(without(job(101), "record"), on_missing=on_missing)
        assert [image.index for image in report.done.images] == items
        assert [image.path.name for image in report.done.images] == names[: len(items)]
        assert all(image.path.stat().st_size for image in report.done.images)


def test_a_collector_with_a_prefix_saves_under_that_whatever_is_behind_it_and_whether_or_not_the_job_fails(rig: Rig) -> None:
    for bad_seed, items in ((99, [0, 1, 2, 3]), (103, [0, 1, 2])):
        report = rig.run(job(bad_seed, save_prefix="kept/%width%/pic"))
        delivery = report.delivery
        assert delivery is not None and isinstance(delivery.error, JobFailed) is (bad_seed == 103)
        saved = {value.index: value.path.relative_to(delivery.out).as_posix() for value in delivery.images}
        width = saved[0].split("/")[1]
        assert width.isdigit()
        assert set(saved) <= set(items) and (bad_seed == 103 or list(saved) == items)
        assert list(saved.values()) == [f"kept/{width}/pic_{number:05}_.png" for number in range(1, len(saved) + 1)]
        assert not delivery.early, "nothing is saved again because the last stage did not run"


def test_a_job_of_which_nothing_is_left_fails(rig: Rig) -> None:
    prompt = job(100, on_missing="drop")
    prompt["collect"]["inputs"]["items"] = 1
    report = rig.run(prompt)
    assert isinstance(report.error, JobFailed) and report.error.index == 0


def test_item_zero_must_not_fail_where_the_last_stage_needs_its_values(rig: Rig) -> None:
    prompt = job(100, on_missing="drop")
    prompt["record"]["inputs"]["images"] = out("both")
    prompt["both"] = node("ImageBatch", image1=out("collect"), image2=out("image"))
    report = rig.run(prompt)
    assert isinstance(report.error, JobFailed) and report.error.index == 0
    prompt["bad"]["inputs"]["bad_seed"] = 101
    assert recorded(rig.run(prompt)) == [100, 102, 103, 100]


def test_all_collectors_of_a_job_must_agree_to_do_without(rig: Rig) -> None:
    prompt = job(102, on_missing="drop")
    prompt["collect2"] = node("DistributedCollector", images=out("image"), load_balance=False)
    assert isinstance(rig.run(prompt).error, JobFailed)
    prompt["collect2"]["inputs"]["on_missing"] = "repeat"
    report = rig.run(prompt)
    assert recorded(report) == [100, 101, 103]
    assert [image.index for image in report.done.images] == [0, 1, 1, 3], "each collector in its own way"
