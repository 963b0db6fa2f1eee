"""How tensors travel, through a whole cluster: the same files under ``auto``, the same bits under ``zstd``, the rest as promised."""
from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray
from PIL import Image

import distributed_comfy
from distributed_comfy.frame_plan import FRAME_OPTIONS, FrameOption
from distributed_comfy.messages import Prompt, TensorRef
from distributed_comfy.orchestrator.submit import SubmitOptions, read_prompt, submit_prompt
from distributed_comfy.transport.encodings import FLOAT16_ABSOLUTE_ERROR, FLOAT16_RELATIVE_ERROR
from tests.cluster_rig import JobReport, Rig
from tests.command_line import PROJECT, CommandLine, pictures, pixels
from tests.kept_jobs import made, rule_images, settings_of, wait_ended
from tests.prompts import node, out

pytestmark = pytest.mark.redis

ITEMS = 3


def collected(**behind: Mapping[str, Any]) -> Prompt:
    """seed -> generator -> enlarged with overshoot -> collector -> these nodes."""
    prompt = pictures(seed=11)
    prompt["scale"] = node("ImageScale", image=out("make"), upscale_method="bicubic", width=100, height=70, crop="disabled")
    prompt["collect"]["inputs"]["images"] = out("scale")
    return {**prompt, **{name: dict(one) for name, one in behind.items()}}


def contents(report: JobReport) -> list[bytes]:
    """Every file of a job, as bytes; previews have names by chance, so only their order counts."""
    return [path.read_bytes() for path in report.done.paths]


def refs(report: JobReport, node_id: str = "collect") -> Iterator[TensorRef]:
    """What a collector's images came as."""
    for _, result in sorted(report.done.results.items()):
        for capture in result.captures:
            if (capture.node_id, capture.slot) == (node_id, "images"):
                assert isinstance(capture.value, TensorRef)
                yield capture.value


def came_as(report: JobReport, node_id: str = "collect") -> set[str]:
    return {"exact" if ref.stored_bytes is None else "encoded" for ref in refs(report, node_id)}


SAVE = node("SaveImage", images=out("collect"), filename_prefix="same")
PREVIEW = node("PreviewImage", images=out("collect"))
EIGHT_BIT: dict[str, Prompt] = {
    "saved by the master": collected(),
    "SaveImage": collected(save=SAVE),
    "PreviewImage": collected(preview=PREVIEW),
    "both": collected(save=SAVE, preview=PREVIEW),
}
MORE_BITS: dict[str, Prompt] = {
    "scaled, then saved": collected(
        big=node("ImageScale", image=out("collect"), upscale_method="bicubic", width=120, height=90, crop="disabled"),
        save=node("SaveImage", images=out("big"), filename_prefix="same"),
    ),
    "saved, and inverted and saved": collected(
        save=SAVE,
        inverted=node("ImageInvert", image=out("collect")),
        other=node("SaveImage", images=out("inverted"), filename_prefix="other"),
    ),
    "recorded as floats": collected(record=node("RuleRecord", label="last", images=out("collect"))),
}


@pytest.mark.parametrize("case", EIGHT_BIT)
def test_auto_sends_8_bits_and_leaves_the_very_same_files(builtin_rig: Rig, case: str) -> None:
    exact = builtin_rig.run(EIGHT_BIT[case], items=ITEMS, frames="exact")
    auto = builtin_rig.run(EIGHT_BIT[case], items=ITEMS, frames="auto")
    assert contents(auto) == contents(exact) and len(contents(exact)) == ITEMS * (2 if case == "both" else 1)
    assert (came_as(exact), came_as(auto)) == ({"exact"}, {"encoded"})
    assert sum(ref.payload_bytes for ref in refs(auto)) < sum(ref.size_bytes for ref in refs(exact)) / 4
    assert auto.done.moved_bytes < exact.done.moved_bytes
    assert auto.batch("collect").dtype == numpy.float32


@pytest.mark.parametrize("case", MORE_BITS)
def test_auto_stays_exact_where_anything_takes_more_than_8_bits(builtin_rig: Rig, case: str) -> None:
    exact = builtin_rig.run(MORE_BITS[case], items=ITEMS, frames="exact")
    auto = builtin_rig.run(MORE_BITS[case], items=ITEMS, frames="auto")
    assert came_as(auto) == {"exact"}
    assert auto.batch("collect").tobytes() == exact.batch("collect").tobytes()
    assert contents(auto) == contents(exact)


def test_without_a_word_everything_is_exact(builtin_rig: Rig) -> None:
    assert came_as(builtin_rig.run(collected(), items=1)) == {"exact"}


def test_values_outside_of_0_to_1_are_saved_as_the_exact_ones_are(builtin_rig: Rig) -> None:
    """The pictures of RuleImage reach from -0.5 to the largest byte of their seed."""
    prompt = rule_images()
    prompt["seed"]["inputs"]["seed"] = 0xFF03
    exact, auto = (builtin_rig.run(prompt, items=2, frames=frames) for frames in ("exact", "auto"))
    assert exact.batch("collect").min() < 0 and exact.batch("collect").max() > 1
    assert came_as(auto) == {"encoded"} and contents(auto) == contents(exact)


def test_transparency_stays(builtin_rig: Rig) -> None:
    prompt = rule_images(channels=4)
    exact, auto, lossy = (builtin_rig.run(prompt, items=1, frames=frames) for frames in ("exact", "auto", "lossy"))
    assert contents(auto) == contents(lossy) == contents(exact)
    with Image.open(auto.done.paths[0]) as picture:
        assert picture.mode == "RGBA"


def test_zstd_is_shorter_and_bit_for_bit(builtin_rig: Rig) -> None:
    exact = builtin_rig.run(collected(save=SAVE), items=ITEMS)
    zstd = builtin_rig.run(collected(save=SAVE), items=ITEMS, frames="zstd")
    assert zstd.batch("collect").tobytes() == exact.batch("collect").tobytes()
    assert contents(zstd) == contents(exact)
    assert sum(ref.payload_bytes for ref in refs(zstd)) < sum(ref.payload_bytes for ref in refs(exact))


def test_fp16_keeps_its_bound(builtin_rig: Rig) -> None:
    exact, halves = (builtin_rig.run(collected(save=SAVE), items=ITEMS, frames=frames) for frames in ("exact", "fp16"))
    expected, found = exact.batch("collect").astype(numpy.float64), halves.batch("collect").astype(numpy.float64)
    assert (numpy.abs(found - expected) <= numpy.maximum(numpy.abs(expected) * FLOAT16_RELATIVE_ERROR, FLOAT16_ABSOLUTE_ERROR)).all()
    assert sum(ref.payload_bytes for ref in refs(halves)) < sum(ref.payload_bytes for ref in refs(exact)) / 2
    assert all(numpy.abs(levels).max() <= 1 for levels in _differences(halves, exact))


def test_lossy_pictures_look_the_same(builtin_rig: Rig) -> None:
    exact, lossy = (builtin_rig.run(collected(save=SAVE), items=ITEMS, frames=frames) for frames in ("exact", "lossy"))
    assert all(10 * numpy.log10(255**2 / numpy.mean(levels**2)) > 36 for levels in _differences(lossy, exact))
    assert sum(ref.payload_bytes for ref in refs(lossy)) < sum(ref.payload_bytes for ref in refs(exact)) / 10


def _differences(one: JobReport, other: JobReport) -> list[NDArray[Any]]:
    """Of the saved files, in levels."""
    return [pixels(a).astype(float) - pixels(b) for a, b in zip(one.done.paths, other.done.paths, strict=True)]


def upscaled(**behind: Mapping[str, Any]) -> Prompt:
    """A picture in nine tiles, saved."""
    text = out("model", 1)
    links = {"upscaled_image": out("make"), "model": out("model"), "positive": text, "negative": text, "vae": out("model", 2)}
    widgets = {
        "seed": 3, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.4, "tile_width": 96,
        "tile_height": 96, "padding": 16, "mask_blur": 8, "force_uniform_tiles": True, "tiled_decode": False,
    }  # fmt: skip
    return {
        "make": node("SeededGenerator", seed=5, steps=2, width=256, height=256, batch_size=1, style="auto"),
        "model": node("SeededModel", edges=0.8, strokes=0.6),
        "up": node("UltimateSDUpscaleDistributed", **links, **widgets),
        "save": node("SaveImage", images=out("up"), filename_prefix="after"),
        **{name: dict(one) for name, one in behind.items()},
    }


@pytest.mark.parametrize("frames", ["auto", "zstd"])
def test_an_upscale_ends_in_the_very_same_file(builtin_rig: Rig, frames: Any) -> None:
    exact, other = (builtin_rig.run(upscaled(), frames=frames) for frames in ("exact", frames))
    assert contents(other) == contents(exact)
    assert came_as(other, "up") == ({"encoded"} if frames == "zstd" else {"exact"})


def test_an_upscale_that_is_scaled_on_is_fed_exact_under_auto(builtin_rig: Rig) -> None:
    on = {
        "on": node("ImageScale", image=out("up"), upscale_method="bicubic", width=300, height=300, crop="disabled"),
        "other": node("SaveImage", images=out("on"), filename_prefix="on"),
    }
    assert contents(builtin_rig.run(upscaled(**on), frames="auto")) == contents(builtin_rig.run(upscaled(**on)))


@pytest.mark.parametrize("frames", ["fp16", "lossy"])
def test_the_tiles_of_an_upscale_travel_as_float16_and_it_hardly_shows(builtin_rig: Rig, frames: Any) -> None:
    exact, other = (builtin_rig.run(upscaled(), frames=frames) for frames in ("exact", frames))
    assert came_as(other, "up") == {"encoded"}
    # The refiner decides by thresholds, so a few pixels flip; all others are the same or a level apart.
    assert all(10 * numpy.log10(255**2 / numpy.mean(levels**2)) > 45 for levels in _differences(other, exact))


def test_a_picture_that_is_collected_to_be_upscaled_is_no_jpeg(builtin_rig: Rig) -> None:
    prompt = upscaled(collect=node("DistributedCollector", images=out("make"), load_balance=False))
    prompt["up"]["inputs"]["upscaled_image"] = out("collect")
    exact, lossy = (builtin_rig.run(prompt, frames=frames) for frames in ("exact", "lossy"))
    errors = numpy.abs(lossy.batch("collect") - exact.batch("collect"))
    assert came_as(lossy) == {"encoded"} and errors.max() <= FLOAT16_RELATIVE_ERROR
    assert lossy.start is not None and lossy.start.record.frames.pictures == ()


def test_results_for_celery_are_exact_under_auto_and_as_asked_otherwise(builtin_rig: Rig) -> None:
    options_tried: tuple[FrameOption, ...] = ("auto", "zstd")
    for frames in options_tried:
        options = SubmitOptions(items=1, results="celery", frames=frames)
        job_id = submit_prompt(builtin_rig.cluster, read_prompt(rule_images(), options), options, threading.Event()).record.job_id
        assert wait_ended(builtin_rig, job_id) == "done"
        with distributed_comfy.celery_app(settings=settings_of(builtin_rig)) as app:
            result = app.AsyncResult(f"{job_id}-0")
            assert result.get(timeout=30).values["collect"]["images"][0].tobytes() == made(0).tobytes()
            result.forget()


def test_what_lost_bits_goes_on_only_as_itself(builtin_rig: Rig) -> None:
    def key(prompt: Prompt, frames: FrameOption) -> str:
        options = SubmitOptions(items=1, frames=frames)
        record = submit_prompt(builtin_rig.cluster, read_prompt(prompt, options), options, threading.Event()).record
        builtin_rig.cluster.jobs.cancel(record.job_id, "only its record was wanted")
        assert record.resume_key
        return record.resume_key

    keys = {frames: key(EIGHT_BIT["SaveImage"], frames) for frames in FRAME_OPTIONS}
    assert keys["exact"] == keys["zstd"]
    assert len({keys[frames] for frames in ("exact", "auto", "fp16", "lossy")}) == 4
    scaled = MORE_BITS["scaled, then saved"]
    assert key(scaled, "auto") == key(scaled, "exact"), "nothing of it lost a bit"


@pytest.fixture
def line(builtin_rig: Rig, tmp_path: Path) -> CommandLine:
    cluster = builtin_rig.cluster
    return CommandLine(tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX=cluster.settings.key_prefix)


def test_the_command_line_takes_the_option_and_shows_it(line: CommandLine) -> None:
    prompt = line.write("graph.json", collected())
    exact = line.run("run", prompt, "--items", "2", "--out", "exact", "--json").json
    auto = line.run("run", prompt, "--items", "2", "--out", "auto", "--frames", "auto", "--json").json
    assert 0 < auto["moved_bytes"] < exact["moved_bytes"] / 4
    assert [Path(line.folder, name).read_bytes() for name in auto["files"]] == [
        Path(line.folder, name).read_bytes() for name in exact["files"]
    ]
    shown = line.run("jobs", "show", auto["job"])
    assert "frames travel as auto: 8 bits from collect, all else exact" in shown.out
    assert line.run("jobs", "show", auto["job"], "--json").json["frames"] == {"option": "auto", "eight_bit": ["collect"]}
    assert "frames travel" not in line.run("jobs", "show", exact["job"]).out


def test_the_setting_is_the_default_and_the_option_wins_over_it(line: CommandLine) -> None:
    prompt = line.write("graph.json", collected())
    found = {
        frames: line.run("run", prompt, "--items", "1", "--out", frames, "--json", *given, DC_FRAMES="lossy").json["job"]
        for frames, given in (("lossy", ()), ("exact", ("--frames", "exact")))
    }
    for frames, job_id in found.items():
        assert line.run("jobs", "show", job_id, "--json").json["frames"]["option"] == frames
    assert line.run("run", prompt, "--frames", "bmp").status == 2
    refused = line.run("run", prompt, DC_FRAMES="bmp")
    assert refused.status != 0 and "DC_FRAMES" in refused.err


@pytest.fixture
def without_zstandard(tmp_path: Path) -> str:
    """A search path on which the package cannot be imported."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "zstandard.py").write_text("raise ImportError('hidden by a test')", encoding="utf-8")
    return os.pathsep.join([str(tmp_path / "hidden"), str(PROJECT)])


def test_a_worker_without_zstandard_sends_exact_frames(builtin_rig: Rig, without_zstandard: str) -> None:
    builtin_rig.start("bare", environment={"PYTHONPATH": without_zstandard}, worker_tags="bare")
    try:
        bare = builtin_rig.run(collected(save=SAVE), items=ITEMS, frames="zstd", tags=["bare"])
    finally:
        builtin_rig.stop("bare")
    assert came_as(bare) == {"exact"}
    assert contents(bare) == contents(builtin_rig.run(collected(save=SAVE), items=ITEMS))


def test_a_python_without_zstandard_refuses_zstd_before_anything_is_queued(line: CommandLine, without_zstandard: str) -> None:
    prompt, path = line.write("graph.json", collected()), without_zstandard
    done = line.run("run", prompt, "--frames", "zstd", "--out", "out", PYTHONPATH=path)
    assert done.status != 0 and "pip install zstandard" in done.err
    assert line.run("run", prompt, "--frames", "auto", "--items", "1", "--out", "out", PYTHONPATH=path).status == 0
