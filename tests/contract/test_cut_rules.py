"""What happens to a prompt on a cluster, rule by rule; the same cases on both engines, with real workers."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from distributed_comfy.errors import CollectorsNested, JobFailed, NothingToVary, SeedOutOfRange, SizesDiffer
from distributed_comfy.messages import Prompt
from tests.cluster_rig import Rig, seeds_of
from tests.prompts import node, out, without

IMAGE = {"seed": out("seed"), "width": 16, "height": 8, "batch_size": 1, "channels": 3}


def job(seed: Any = 100, **image: Any) -> Prompt:
    """seed -> images -> collector -> a record of what was collected."""
    return {
        "seed": node("DistributedSeed", seed=seed),
        "image": node("RuleImage", **{**IMAGE, **image}),
        "collect": node("DistributedCollector", images=out("image"), load_balance=False),
        "record": node("RuleRecord", images=out("collect"), label="last"),
    }


def listed(seed: int = 100, **inputs: Any) -> Prompt:
    """The same with lists of images."""
    return {**job(seed), "image": node("RuleList", **{"seed": out("seed"), "length": 2, "batch_size": 2, "skip": 0, **inputs})}


def recorded_seeds(values: dict[str, Any]) -> list[int]:
    """The seeds of the images that a RuleRecord was given."""
    return seeds_of(numpy.array(values["images"], numpy.float32))


def texts(path: Path) -> dict[str, Any]:
    """What a PNG says about itself."""
    with Image.open(path) as picture:
        return {key: json.loads(text) for key, text in picture.info.items() if isinstance(text, str)}


def pixels(path: Path) -> Any:
    """A PNG's bytes."""
    with Image.open(path) as picture:
        return numpy.array(picture)


# -- capture ------------------------------------------------------------------------------------------------------------
def test_items_come_together_in_the_order_of_their_seeds_whoever_ran_them(rig: Rig) -> None:
    report = rig.run(job(batch_size=2), items=8)
    assert {result.worker for result in report.done.results.values()} == {"one", "two"}
    assert seeds_of(report.batch("collect")) == [seed for seed in range(100, 108) for _ in range(2)]
    assert recorded_seeds(report.record("last")) == seeds_of(report.batch("collect"))
    assert report.count("RuleImage") == 8 and report.count("RuleRecord") == 1


def test_within_an_item_the_order_is_that_of_lists_and_then_of_batches(rig: Rig) -> None:
    report = rig.run(listed(length=3, batch_size=2), items=3)
    assert [place[::3] for place in sorted(report.values)] == [(item, position) for item in range(3) for position in range(3)]
    images = numpy.array(report.record("last")["images"], numpy.float32)
    assert seeds_of(images) == [seed for seed in (100, 101, 102) for _ in range(6)]
    places = [position + batch / 64 for _ in range(3) for position in range(3) for batch in range(2)]
    assert images[:, 0, 0, 1].tolist() == places


def test_the_last_stage_gets_the_very_bits_that_were_collected(rig: Rig) -> None:
    report = rig.run(job(), items=4)
    images = numpy.array(report.record("last")["images"], numpy.float32)
    assert images.tobytes() == report.batch("collect").tobytes()
    assert images.min() == -0.5 and images.max() == 100 + 3, "values outside [0, 1] were among them"


@pytest.mark.parametrize(("channels", "width", "height"), [(1, 16, 8), (4, 16, 8), (3, 17, 9), (4, 101, 3)])
def test_any_channels_and_odd_sizes_arrive_whole(rig: Rig, channels: int, width: int, height: int) -> None:
    prompt = without(job(width=width, height=height, channels=channels), "record")
    report = rig.run(prompt, items=2)
    assert report.batch("collect").shape == (2, height, width, channels)
    saved = [pixels(image.path) for image in report.done.images]
    assert [picture.shape for picture in saved] == [(height, width, channels) if channels > 1 else (height, width)] * 2
    expected = numpy.clip(255 * report.batch("collect"), 0, 255).astype(numpy.uint8)
    numpy.testing.assert_array_equal(numpy.stack(saved).reshape(expected.shape), expected)


def test_sizes_that_differ_are_an_error_that_names_both_items_and_sizes(rig: Rig) -> None:
    report = rig.run(job(grow=8), items=2)
    assert isinstance(report.error, SizesDiffer)
    for part in ("item 1", "24 x 8", "item 0", "16 x 8"):
        assert part in str(report.error)
    assert rig.cluster.jobs.job_state(report.job_id).state == "cancelled"


def test_a_list_with_different_sizes_within_one_item_is_an_error_too(rig: Rig) -> None:
    prompt = job()
    prompt["both"] = node("RuleImage", **{**IMAGE, "seed": out("seeds", 4), "grow": 8})
    prompt["seeds"] = node("RuleSplit", seed=out("seed"))
    prompt["collect"]["inputs"]["images"] = out("both")
    assert isinstance(rig.run(prompt, items=2).error, SizesDiffer)


# -- what the engine's cache must not swallow ---------------------------------------------------------------------------
def test_the_same_job_twice_gives_complete_files_both_times(rig: Rig) -> None:
    prompt = job()
    prompt["before"] = node("SaveImage", images=out("image"), filename_prefix="before")
    prompt["after"] = node("SaveImage", images=out("collect"), filename_prefix="after")
    expected = ["after_00001_.png", "after_00002_.png", "after_00003_.png", "before_00001_.png", "last.json"]
    for _ in range(3):
        report = rig.run(prompt, items=3)
        assert sorted(file.name for file in report.done.files) == expected
        assert not report.done.images, "SaveImage saves what was collected"
        assert recorded_seeds(report.record("last")) == [100, 101, 102]
        for file in report.done.files:
            assert file.path.stat().st_size == file.ref.size_bytes > 0


def test_the_same_item_on_the_same_worker_runs_its_sink_and_nothing_else(rig: Rig) -> None:
    prompt = without(job(seed=7000), "record")  # a last stage would be another prompt, which pushes this one out of the cache
    reports = [rig.run(prompt, items=1) for _ in range(6)]
    workers = [report.done.results[0].worker for report in reports]
    assert [report.count("RuleImage") for report in reports] == [int(worker not in workers[:turn]) for turn, worker in enumerate(workers)]
    assert len({report.batch("collect").tobytes() for report in reports}) == 1
    assert all([index for index, _, _ in rig.executions(report.job_id)] == [0] for report in reports)


def test_two_jobs_into_one_folder_keep_the_files_of_both(rig: Rig) -> None:
    out_folder = rig.new_folder()
    prompt = {**without(job(), "record"), "after": node("SaveImage", images=out("collect"), filename_prefix="sub/x")}
    names = [[file.name for file in rig.run(prompt, items=2, out=out_folder).done.files] for _ in range(2)]
    assert names == [["sub/x_00001_.png", "sub/x_00002_.png"], ["sub/x_00003_.png", "sub/x_00004_.png"]]
    assert sorted(path.name for path in out_folder.iterdir()) == ["sub"], "neither spool nor partial files are left"


# -- nothing upstream ---------------------------------------------------------------------------------------------------
def test_an_item_without_images_is_done_and_reported(rig: Rig) -> None:
    report = rig.run(listed(skip=3), items=4)
    assert {index: result.blocked for index, result in report.done.results.items() if result.blocked} == {2: ("collect",)}
    assert recorded_seeds(report.record("last")) == [seed for seed in (100, 101, 103) for _ in range(4)]


def test_a_job_without_any_image_is_done_and_saves_nothing(rig: Rig) -> None:
    prompt = {**listed(skip=1), "after": node("SaveImage", images=out("collect"), filename_prefix="after")}
    report = rig.run(prompt, items=2)
    assert [result.blocked for index, result in sorted(report.done.results.items()) if index < 2] == [("collect",), ("collect",)]
    assert report.done.paths == []
    assert report.count("RuleRecord") == 0


# -- output nodes -------------------------------------------------------------------------------------------------------
def test_output_nodes_before_the_collector_run_in_item_zero_alone_and_are_delivered_once(rig: Rig) -> None:
    prompt = job()
    prompt["show"] = node("PreviewImage", images=out("image"))
    prompt["before"] = node("RuleRecord", images=out("image"), label="before")
    report = rig.run(prompt, items=4)
    assert recorded_seeds(report.record("before")) == [100]
    assert [call for call in report.calls if call.startswith("RuleRecord")] == ["RuleRecord before", "RuleRecord last"]
    by_item = {(file.index, file.ref.node_id, file.ref.folder) for file in report.done.files}
    assert by_item == {(0, "show", "temp"), (0, "before", "output"), (4, "record", "output")}


def test_an_output_node_on_the_way_to_the_collector_does_not_run_again_in_the_last_stage(rig: Rig) -> None:
    prompt = job()
    prompt["tap"] = node("RuleTap", images=out("image"))
    prompt["collect"]["inputs"]["images"] = out("tap")
    prompt["both"] = node("RuleRecord", images=out("tap"), label="both")
    prompt["beside"] = node("ImageBatch", image1=out("collect"), image2=out("tap"))
    prompt["record"]["inputs"]["images"] = out("beside")
    report = rig.run(prompt, items=3)
    assert report.count("RuleTap") == 3
    assert recorded_seeds(report.record("last")) == [100, 101, 102, 100]


def test_a_prompt_may_save_on_both_sides(rig: Rig) -> None:
    prompt = job()
    prompt["before"] = node("SaveImage", images=out("image"), filename_prefix="x")
    prompt["after"] = node("SaveImage", images=out("collect"), filename_prefix="x")
    names = [(file.ref.node_id, file.name) for file in rig.run(prompt, items=2).done.files if file.ref.node_id != "record"]
    assert sorted(names) == [("after", "x_00002_.png"), ("after", "x_00003_.png"), ("before", "x_00001_.png")]


# -- edges that cross the cut -------------------------------------------------------------------------------------------
def crossing(*inputs: str) -> Prompt:
    """One record before the cut and one behind it, each with these values of the same node."""
    slots = ("images", "mask", "latent", "audio", "number", "real", "text", "flag", "model")
    links = {name: out("split", slots.index(name)) for name in inputs}
    return {
        **job(2**60 + 1),
        "split": node("RuleSplit", seed=out("seed")),
        "crossed": node("RuleRecord", label="crossed", **links),
        "behind": node("ImageBatch", image1=out("collect"), image2=out("split")),
        "record": node("RuleRecord", images=out("behind"), label="last", **links),
    }


def test_values_of_every_kind_that_can_travel_cross_the_cut_from_item_zero(rig: Rig) -> None:
    prompt = crossing("mask", "latent", "audio", "number", "real", "text", "flag")
    report = rig.run(prompt, items=3)
    seed = 2**60 + 1
    assert report.start is not None
    assert sorted(report.start.record.edges) == [f"split~{slot}" for slot in range(8)]
    last, crossed = report.record("last"), report.record("crossed")
    assert {name: value for name, value in last.items() if name != "images"} == crossed, "the same values on both sides"
    assert recorded_seeds(last) == [seed, seed + 1, seed + 2, seed]
    assert crossed["number"] == seed and crossed["text"] == f"seed {seed} \u2713" and crossed["flag"] is True
    assert crossed["real"] == seed / 3 and crossed["audio"]["sample_rate"] == 44100
    assert crossed["latent"]["batch_index"] == [3] and crossed["latent"]["samples"][0][0][0][0] == seed % 97 + 0.5
    assert report.count("RuleSplit") == 1, "captured, not computed again"


def test_a_value_that_cannot_travel_is_made_again_with_item_zeros_seed(rig: Rig) -> None:
    report = rig.run(crossing("model"), items=3)
    assert report.record("last")["model"] == report.record("crossed")["model"] == {"seed": 2**60 + 1}


def test_a_loader_on_both_sides_runs_on_both(rig: Rig) -> None:
    prompt = job()
    prompt["load"] = node("RuleModel", name="tiny")
    prompt["before"] = node("RuleRecord", images=out("image"), model=out("load"), label="before")
    prompt["record"]["inputs"]["model"] = out("load")
    report = rig.run(prompt, items=2)
    assert report.record("last")["model"] == report.record("before")["model"] == {"seed": "tiny"}
    assert report.start is not None and report.start.record.edges == ()


def test_the_seed_in_the_last_stage_is_item_zeros(rig: Rig) -> None:
    prompt = job(2**64 - 3)
    prompt["after"] = node("RuleImage", **{**IMAGE, "batch_size": 2})
    prompt["join"] = node("ImageBatch", image1=out("collect"), image2=out("after"))
    prompt["record"]["inputs"] |= {"images": out("join"), "number": out("seed")}
    report = rig.run(prompt, items=3)
    assert recorded_seeds(report.record("last")) == [2**64 - 3, 2**64 - 2, 2**64 - 1, 2**64 - 3, 2**64 - 3]
    assert report.record("last")["number"] == 2**64 - 3


# -- collectors ---------------------------------------------------------------------------------------------------------
def test_parallel_collectors_are_captures_of_the_same_items(rig: Rig) -> None:
    prompt = job()
    prompt["other"] = node("RuleList", seed=out("seed"), length=1, batch_size=2, skip=0)
    prompt["collect2"] = node("DistributedCollector", images=out("other"), load_balance=False)
    prompt["record2"] = node("RuleRecord", images=out("collect2"), label="second")
    report = rig.run(prompt, items=3)
    assert recorded_seeds(report.record("last")) == [100, 101, 102]
    assert recorded_seeds(report.record("second")) == [100, 100, 101, 101, 102, 102]
    assert len(report.done.results) == 4


def test_two_collectors_can_meet_in_the_last_stage(rig: Rig) -> None:
    prompt = job()
    prompt["invert"] = node("ImageInvert", image=out("image"))
    prompt["collect2"] = node("DistributedCollector", images=out("invert"), load_balance=False)
    prompt["join"] = node("ImageBatch", image1=out("collect2"), image2=out("collect"))
    prompt["record"]["inputs"]["images"] = out("join")
    report = rig.run(prompt, items=2)
    images = numpy.array(report.record("last")["images"], numpy.float32)
    numpy.testing.assert_array_equal(images[:2], 1 - images[2:])
    assert seeds_of(images[2:]) == [100, 101]


def test_nested_collectors_are_refused_unless_the_second_passes_through(rig: Rig) -> None:
    prompt = job()
    prompt["again"] = node("DistributedCollector", images=out("collect"), load_balance=False)
    prompt["record"]["inputs"]["images"] = out("again")
    with pytest.raises(CollectorsNested, match="collector collect feeds collector again"):
        rig.run(prompt, items=2)
    prompt["again"]["inputs"]["pass_through"] = True
    assert recorded_seeds(rig.run(prompt, items=2).record("last")) == [100, 101]


def test_a_collector_whose_result_nobody_uses_is_saved_by_the_master(rig: Rig) -> None:
    report = rig.run(without(job(batch_size=2), "record"), items=3)
    assert [image.path.name for image in report.done.images] == [f"ComfyUI_{number:05}_.png" for number in range(1, 7)]
    assert [(image.index, image.batch_index) for image in report.done.images] == [(item, batch) for item in range(3) for batch in range(2)]
    assert [pixels(image.path)[0, 0, 0] for image in report.done.images] == [255] * 6
    assert len(report.done.results) == 3, "there is no last stage"


def test_audio_comes_together_along_time(rig: Rig) -> None:
    prompt = job(96)
    prompt["split"] = node("RuleSplit", seed=out("seed"))
    prompt["collect"]["inputs"]["audio"] = out("split", 3)
    prompt["record"]["inputs"]["audio"] = out("collect", 1)
    audio = rig.run(prompt, items=3).record("last")["audio"]
    assert audio["sample_rate"] == 44100
    assert audio["waveform"] == [[[96.0] * 3 + [0.0] * 3 + [1.0] * 3] * 2]


# -- ids and metadata ---------------------------------------------------------------------------------------------------
def test_ids_of_flattened_subgraphs_work_and_can_be_set(rig: Rig) -> None:
    prompt = {
        "12:5": node("DistributedSeed", seed=1),
        "12:6:7": node("RuleImage", **{**IMAGE, "seed": out("12:5")}),
        "3:1": node("DistributedCollector", images=out("12:6:7"), load_balance=False),
        "3:2": node("RuleRecord", images=out("3:1"), label="last"),
    }
    prompt["3:2"]["inputs"]["number"] = ["12:8", 4]
    prompt["12:8"] = node("RuleSplit", seed=out("12:5"))
    report = rig.run(prompt, items=2, sets=["12:5.seed=500", "12:6:7.width=24"])
    assert seeds_of(report.batch("3:1")) == [500, 501]
    assert report.batch("3:1").shape == (2, 8, 24, 3)
    assert report.record("last")["number"] == 500


def test_files_of_output_nodes_carry_the_users_own_prompt(rig: Rig) -> None:
    prompt = job()
    prompt["before"] = node("SaveImage", images=out("image"), filename_prefix="before")
    prompt["after"] = node("SaveImage", images=out("collect"), filename_prefix="after")
    workflow = {"workflow": {"nodes": [], "links": [], "extra": {"note": "mine \u2713"}}}
    body = {"prompt": prompt, "extra_data": {"extra_pnginfo": workflow, "api_key": "secret"}}
    report = rig.run(body, items=2, seed=77)
    seeded = {**prompt, "seed": node("DistributedSeed", seed=77)}
    pictures = [file for file in report.done.files if file.name.endswith(".png")]
    assert len(pictures) == 3
    for file in pictures:
        found = texts(file.path)
        assert found["prompt"] == seeded and found["workflow"] == workflow["workflow"]
        assert b"secret" not in file.path.read_bytes()


def test_images_that_we_save_carry_the_prompt_and_each_its_seed(rig: Rig) -> None:
    prompt = without(job(2**64 - 2, batch_size=2), "record")
    report = rig.run(prompt, items=2)
    assert [texts(image.path)["seed"] for image in report.done.images] == [2**64 - 2] * 2 + [2**64 - 1] * 2
    assert all(texts(image.path)["prompt"] == prompt for image in report.done.images)


# -- seeds --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 2**53 - 1, 2**53 + 1, 2**63 - 1, 2**64 - 3])
def test_seeds_are_exact_to_the_last_one(rig: Rig, seed: int) -> None:
    report = rig.run(job(seed), items=3)
    assert seeds_of(report.batch("collect")) == [seed, seed + 1, seed + 2]
    assert report.done.seeds == {0: str(seed), 1: str(seed + 1), 2: str(seed + 2), 3: str(seed)}


def test_a_batch_that_would_leave_the_range_of_seeds_is_refused(rig: Rig) -> None:
    with pytest.raises(SeedOutOfRange):
        rig.run(job(2**64 - 2), items=3)
    with pytest.raises(SeedOutOfRange):
        rig.run(job(), items=2, seed=2**64)


def test_a_given_seed_is_item_zeros(rig: Rig) -> None:
    assert seeds_of(rig.run(job(), items=2, seed=9).batch("collect")) == [9, 10]


# -- how many -----------------------------------------------------------------------------------------------------------
def test_without_a_number_every_live_worker_gets_an_item(rig: Rig) -> None:
    assert seeds_of(rig.run(job()).batch("collect")) == [100, 101]


def test_the_collectors_own_number_counts(rig: Rig) -> None:
    prompt = job()
    prompt["collect"]["inputs"]["items"] = 3
    assert seeds_of(rig.run(prompt).batch("collect")) == [100, 101, 102]


def test_items_without_anything_that_varies_are_refused(rig: Rig) -> None:
    with pytest.raises(NothingToVary, match="DistributedSeed"):
        rig.run(without(job(), "seed") | {"image": node("RuleImage", **{**IMAGE, "seed": 3})}, items=2)


# -- prompts without distributed nodes, and files -----------------------------------------------------------------------
def test_a_prompt_without_distributed_nodes_is_one_item_with_all_its_files(rig: Rig) -> None:
    prompt = {
        "image": node("RuleImage", **{**IMAGE, "seed": 5}), "record": node("RuleRecord", images=out("image"), label="whole"),
        "save": node("SaveImage", images=out("image"), filename_prefix="whole"), "show": node("PreviewImage", images=out("image")),
    }  # fmt: skip
    for _ in range(2):
        report = rig.run(prompt)
        assert len(report.done.results) == 1 and len(report.done.files) == 3
        assert recorded_seeds(report.record("whole")) == [5]


def test_seeds_without_a_collector_run_every_output_node_once_per_seed(rig: Rig) -> None:
    prompt = {**without(job(), "collect", "record"), "save": node("SaveImage", images=out("image"), filename_prefix="each")}
    report = rig.run(prompt, items=3)
    assert sorted(file.name for file in report.done.files) == ["each_00001_.png", "each_00002_.png", "each_00003_.png"]
    assert sorted(file.index for file in report.done.files) == [0, 1, 2]


def test_input_files_are_brought_to_the_worker_by_content(rig: Rig, tmp_path: Path) -> None:
    picture = tmp_path / "my cat.png"
    prompt = job()
    prompt["load"] = node("LoadImage", image=str(picture))
    prompt["scale"] = node("ImageScale", image=out("load"), upscale_method="nearest-exact", width=16, height=8, crop="disabled")
    prompt["join"] = node("ImageBatch", image1=out("image"), image2=out("scale"))
    prompt["collect"]["inputs"]["images"] = out("join")
    prompt["after"] = node("ImageBatch", image1=out("collect"), image2=out("load"))
    prompt["record"]["inputs"]["images"] = out("after")
    for red in (10, 200):
        Image.new("RGB", (4, 2), (red, 0, 0)).save(picture)
        report = rig.run(prompt, items=2)
        loaded = report.batch("collect")[1::2]
        assert loaded.shape == (2, 8, 16, 3)
        assert (loaded[..., 0] == numpy.float32(red / 255)).all() and not loaded[..., 1:].any()
        assert len(report.record("last")["images"]) == 5


def test_an_input_file_that_the_blob_store_lost_is_put_back_while_its_item_waits(builtin_rig: Rig, tmp_path: Path) -> None:
    rig, blobs = builtin_rig, builtin_rig.cluster.blobs
    Image.new("RGB", (16, 8), (1, 2, 3)).save(tmp_path / "x.png")
    prompt = job()
    prompt["load"] = node("LoadImage", image=str(tmp_path / "x.png"))
    prompt["join"] = node("ImageBatch", image1=out("image"), image2=out("load"))
    prompt["collect"]["inputs"]["images"] = out("join")
    busy = job()
    busy["slow"] = node("RuleSlow", images=out("image"), milliseconds=1500)
    busy["collect"]["inputs"]["images"] = out("slow")
    first = rig.begin(busy, items=2)
    first.until(lambda: len(rig.executions(first.queued())) == 2)
    second = rig.begin(prompt, items=2)
    second.queued()
    assert second.report.start is not None
    lost = [entry.file.blob for entry in second.report.start.record.input_files]
    blobs.unlink(lost)
    second.until(lambda: all(blobs.exists(lost)))  # the collector's first look, at once
    blobs.unlink(lost)  # its next look is seconds away: both workers come too early
    assert second.wait().batch("collect").shape == (4, 8, 16, 3)
    assert len(rig.executions(second.report.job_id)) == 3, "an item that waits is not executed and uses up no attempt"
    assert any("waiting for it" in worker.log() for worker in rig.workers.values())
    assert recorded_seeds(first.wait().record("last")) == [100, 101]


# -- failures -----------------------------------------------------------------------------------------------------------
def test_a_node_that_raises_fails_the_job_with_its_words_and_keeps_what_is_finished(rig: Rig) -> None:
    prompt = without(job(), "record")
    prompt["slow"] = node("RuleSlow", images=out("image"), milliseconds=50)
    prompt["bad"] = node("RuleFail", images=out("slow"), seed=out("seed"), bad_seed=103)
    prompt["collect"]["inputs"]["images"] = out("bad")
    report = rig.run(prompt, items=8)
    error = report.error
    assert isinstance(error, JobFailed)
    assert error.index == 3 and error.worker in ("one", "two")
    for part in ("item 3", error.worker, "node bad", "RuleFail", "ValueError", "seed 103 brings no luck"):
        assert part in str(error)
    assert "rule_nodes.py" in "".join(error.error["fields"]["traceback"])
    assert report.delivery is not None and report.delivery.images, "finished images are kept"
    seeds = [texts(image.path)["seed"] for image in report.delivery.images]
    assert seeds == sorted(seeds) and set(seeds) <= set(range(100, 108)) - {103}
    assert len([index for index, _, _ in rig.executions(report.job_id) if index == 3]) == 1, "a node's own error is not retried"
