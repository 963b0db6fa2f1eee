"""An upscale of sixteen tiles by a real ComfyUI: the same bits on one, two and three workers, with one of them killed, and by hand.

The short form runs everywhere; `make test-comfyui-long` runs the one whose tiles have 512 pixels.
"""
from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import pytest

from distributed_comfy.messages import Prompt
from tests.cluster_rig import JobReport, Rig
from tests.comfyui.plain_comfyui import PlainComfyUI
from tests.comfyui.tiles_by_hand import Floats, Rules, redraw
from tests.comfyui.tiny_prompts import distributed
from tests.command_line import pixels
from tests.prompts import node, out

SEED = 3
SAMPLING = {"steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
LINKS: dict[str, Any] = {"model": out("1"), "positive": out("3"), "negative": out("4")}


@dataclass(frozen=True)
class Form:
    """How large the image and its tiles are, and how they are redrawn."""

    width: int
    height: int
    rules: Rules
    denoise: float = 0.4
    tile_seeds: str = "same"
    tiled_decode: bool = False


SHORT = Form(1000, 1000, Rules(tile=256, padding=32, feather=8))
LONG = Form(2048, 2048, Rules(tile=512, padding=32, feather=8))
ODD = {
    "all new, more padding than tile": Form(100, 100, Rules(tile=64, padding=72, feather=8), denoise=1.0),
    "nothing new, one tile": Form(100, 100, Rules(tile=512, padding=32, feather=8), denoise=0.0),
    "one pixel": Form(1, 1, Rules(tile=64, padding=32, feather=8)),
    "a seed for each tile": Form(100, 100, Rules(tile=64, padding=16, feather=16), tile_seeds="offset"),
    "decoded in parts": Form(544, 64, Rules(tile=544, padding=32, feather=8), tiled_decode=True),
}


FORMS = [SHORT, pytest.param(LONG, marks=[pytest.mark.comfyui_long, pytest.mark.timeout(900)])]


@pytest.fixture(scope="module", params=FORMS, ids=["short", "long"])
def form(request: pytest.FixtureRequest) -> Form:
    found: Form = request.param
    return found


@pytest.fixture
def third(comfyui_rig: Rig) -> Iterator[str]:
    """A third worker, which may be killed."""
    name = f"third-{uuid.uuid4().hex[:6]}"
    comfyui_rig.start(name, lease_ttl_s=2)
    yield name
    if name in comfyui_rig.workers:
        comfyui_rig.stop(name)


# -- prompts -----------------------------------------------------------------------------------------------------------------
def enlarged(form: Form) -> Prompt:
    """The image to upscale, node ``big``, by stock nodes."""
    scale = node("ImageScale", image=out("8"), upscale_method="bicubic", width=form.width, height=form.height, crop="disabled")
    prompt = distributed({"big": scale}, seed=100, side=256)
    prompt["5"]["inputs"]["batch_size"] = 1
    prompt["7"]["inputs"]["seed"] = 100
    return {node_id: value for node_id, value in prompt.items() if node_id not in ("6", "9", "10")}


def upscaled(form: Form, mode: str) -> Prompt:
    """The image, its upscale and both as numbers, the upscale as a picture too."""
    rules = form.rules
    tiles = {"tile_width": rules.tile, "tile_height": rules.tile, "padding": rules.padding, "mask_blur": rules.feather}
    switches = {"force_uniform_tiles": True, "tiled_decode": form.tiled_decode, "mode": mode, "tile_seeds": form.tile_seeds}
    return {
        **enlarged(form),
        "up": node(
            "UltimateSDUpscaleDistributed", upscaled_image=out("big"), vae=out("2"), seed=SEED, denoise=form.denoise,
            **LINKS, **SAMPLING, **tiles, **switches,
        ),
        "before": node("ProbeArrayOut", images=out("big"), name="before.npy"),
        "after": node("ProbeArrayOut", images=out("up"), name="after.npy"),
        "picture": node("SaveImage", images=out("up"), filename_prefix="after"),
    }  # fmt: skip


def one_tile(form: Form, crop: str, seed: int) -> Prompt:
    """One tile by ComfyUI's own nodes; its image is that of node ``decoded``."""
    decoder = node("VAEDecode")
    if form.tiled_decode:
        decoder = node("VAEDecodeTiled", tile_size=512, overlap=64, temporal_size=64, temporal_overlap=8)
    decoder["inputs"] |= {"samples": out("sampled"), "vae": out("2")}
    return {
        **{node_id: value for node_id, value in enlarged(form).items() if node_id in ("1", "2", "3", "4")},
        "crop": node("ProbeArray", name=crop),
        "encoded": node("VAEEncode", pixels=out("crop"), vae=out("2")),
        "sampled": node("KSampler", latent_image=out("encoded"), seed=seed, denoise=form.denoise, **LINKS, **SAMPLING),
        "decoded": decoder,
    }


# -- runs --------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Made:
    """What a job made: floats, the bytes of the picture, and by whom."""

    before: bytes
    after: Floats
    picture: Any
    workers: set[str]
    """That redrew tiles."""


def made(rig: Rig, report: JobReport) -> Made:
    paths = {file.ref.name: file.path for file in report.done.files}
    tiles = tile_items(rig, report.job_id)
    return Made(
        before=numpy.load(paths["before.npy"]).tobytes(),
        after=numpy.load(paths["after.npy"]),
        picture=pixels(paths["after_00001_.png"]),
        workers={result.worker for index, result in report.done.results.items() if index in tiles},
    )


def tile_items(rig: Rig, job_id: str) -> set[int]:
    return {index for index, spec in rig.cluster.jobs.specs(job_id).items() if spec.kind == "tile"}


def run_on(rig: Rig, names: set[str], prompt: Prompt) -> Made:
    """A job on these workers only."""
    rig.wait_idle()
    for name in rig.workers:
        rig.cluster.jobs.drain(name, drained=name not in names)
    try:
        report = rig.run(prompt)
    finally:
        for name in rig.workers:
            rig.cluster.jobs.drain(name, drained=False)
    return made(rig, report)


def run_and_kill(rig: Rig, victim: str, prompt: Prompt) -> Made:
    """A job on all workers; one is killed while its engine redraws a tile, which then must run elsewhere."""
    rig.wait_idle()
    job = rig.begin(prompt)
    index, claim_id = job.until(lambda: tile_in_work(rig, job.queued(), victim))
    rig.workers.pop(victim).kill()
    report = job.wait(timeout_s=300)
    executions = rig.executions(report.job_id)
    assert [row[0] for row in executions].count(index) == 2, "the tile that died with its worker ran again"
    assert len(executions) == len(report.done.results) + 1, "and nothing else did"
    assert report.done.results[index].worker != victim
    assert claim_id in {row[1] for row in executions}
    return made(rig, report)


def tile_in_work(rig: Rig, job_id: str, worker: str) -> tuple[int, str] | None:
    """Item and claim of a tile that the worker's engine has begun and not finished."""
    begun = {row[1] for row in rig.executions(job_id)}
    tiles = tile_items(rig, job_id)
    for index, item in rig.cluster.jobs.item_states(job_id).items():
        if index in tiles and item.worker == worker and item.state == "running" and item.claim_id in begun:
            return index, item.claim_id
    return None


def assert_same(ones: Made, others: Made) -> None:
    assert ones.before == others.before
    assert ones.after.tobytes() == others.after.tobytes()
    assert numpy.array_equal(ones.picture, others.picture)


# -- tests -------------------------------------------------------------------------------------------------------------------
def test_one_two_and_three_workers_and_a_killed_one_make_the_same_bits(comfyui_rig: Rig, third: str, form: Form) -> None:
    prompt = upscaled(form, "chess")
    one, two, three = (run_on(comfyui_rig, names, prompt) for names in ({"one"}, {"one", "two"}, {"one", "two", third}))
    killed = run_and_kill(comfyui_rig, third, prompt)
    assert [len(run.workers) for run in (one, two, three)] == [1, 2, 3]
    for other in (two, three, killed):
        assert_same(one, other)
    assert one.after.shape == (1, form.height, form.width, 3) and (one.after != numpy.frombuffer(one.before, numpy.float32)[0]).any()


def test_linear_is_what_comfyuis_own_nodes_make_tile_by_tile(
    comfyui_rig: Rig, third: str, plain: PlainComfyUI, form: Form
) -> None:
    assert not {"UltimateSDUpscaleDistributed", "DistributedSource"} & plain.object_info().keys(), "nothing of ours is loaded there"
    before = plain.images(enlarged(form), "big")
    by_hand = redraw(before, form.rules, tile_by_plain(plain, form))
    ours = run_and_kill(comfyui_rig, third, upscaled(form, "linear"))
    assert ours.before == before.tobytes()
    assert ours.after.tobytes() == by_hand.tobytes()
    assert (by_hand != before).mean() > 0.99, "every tile was redrawn"


@pytest.mark.parametrize("name", ODD)
def test_odd_upscales_are_what_comfyuis_own_nodes_make(comfyui_rig: Rig, plain: PlainComfyUI, name: str) -> None:
    form = ODD[name]
    by_hand = redraw(plain.images(enlarged(form), "big"), form.rules, tile_by_plain(plain, form))
    ours = made(comfyui_rig, comfyui_rig.run(upscaled(form, "linear")))
    assert ours.after.shape == (1, form.height, form.width, 3) and ours.after.tobytes() == by_hand.tobytes()


def tile_by_plain(plain: PlainComfyUI, form: Form) -> Callable[[Floats], Floats]:
    """Redraws a crop on ComfyUI's own server."""
    numbers = itertools.count()

    def redraw_crop(crop: Floats) -> Floats:
        number = next(numbers)
        name = f"crop{number}.npy"
        numpy.save(plain.input / name, crop)
        try:
            return plain.images(one_tile(form, name, SEED + (number if form.tile_seeds == "offset" else 0)), "decoded")
        finally:
            (plain.input / name).unlink()

    return redraw_crop
