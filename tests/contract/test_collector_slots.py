"""A collector's audio, latents and masks on both engines: joined for the last stage, checked, and saved where nobody saves them."""
from __future__ import annotations

from typing import Any

import numpy

from distributed_comfy.errors import BatchDiffers
from distributed_comfy.messages import Prompt
from tests.cluster_rig import Rig, seeds_of
from tests.prompts import node, out, without

IMAGES, MASK, LATENT, AUDIO = range(4)
"""Outputs of RuleSplit."""


def job(seed: int = 1, **slots: int) -> Prompt:
    """A collector with these outputs of a RuleSplit and no images unless asked for; a record takes what it gives."""
    outputs = {"images": 0, "audio": 1, "latents": 2, "masks": 3}
    names = {"latents": "latent", "masks": "mask"}
    taken = {names.get(slot, slot): out("collect", outputs[slot]) for slot in slots}
    return {
        "seed": node("DistributedSeed", seed=seed),
        "split": node("RuleSplit", seed=out("seed")),
        "collect": node("DistributedCollector", load_balance=False, **{slot: out("split", output) for slot, output in slots.items()}),
        "record": node("RuleRecord", label="last", **taken),
    }


def test_audio_alone_is_collected_and_the_images_are_an_empty_batch(rig: Rig) -> None:
    prompt = job(audio=AUDIO)
    prompt["record"]["inputs"]["images"] = out("collect")
    found = rig.run(prompt, items=3).record("last")
    assert found["audio"] == {"waveform": [[[1.0] * 3 + [2.0] * 3 + [3.0] * 3] * 2], "sample_rate": 44100}
    assert found["images"] == []


def test_latents_come_together_along_the_batch(rig: Rig) -> None:
    latent = rig.run(job(latents=LATENT), items=3).record("last")["latent"]
    samples = numpy.array(latent["samples"])
    assert samples.shape == (3, 4, 2, 2) and samples[:, 0, 0, 0].tolist() == [1.5, 2.5, 3.5]
    assert latent["batch_index"] == [3, 3, 3]


def test_masks_come_together_along_the_batch(rig: Rig) -> None:
    mask = numpy.array(rig.run(job(masks=MASK), items=3).record("last")["mask"])
    assert mask.shape == (3, 8, 16) and mask[:, 0, 0].tolist() == [1, 2, 3]


def test_all_slots_of_one_collector_together(rig: Rig) -> None:
    report = rig.run(job(images=IMAGES, audio=AUDIO, latents=LATENT, masks=MASK), items=2)
    found = report.record("last")
    assert seeds_of(numpy.array(found["images"], numpy.float32)) == [1, 2]
    assert len(found["mask"]) == 2 and len(found["latent"]["samples"]) == 2 and len(found["audio"]["waveform"][0][0]) == 6
    assert not report.done.images, "the last stage saved everything"


def test_a_collector_without_images_passes_through_undistributed(rig: Rig) -> None:
    prompt = job(audio=AUDIO, masks=MASK)
    prompt["collect"]["inputs"]["pass_through"] = True
    found = rig.run(prompt).record("last")
    assert found["audio"]["waveform"] == [[[1.0] * 3] * 2] and numpy.array(found["mask"]).shape == (1, 8, 16)


def test_masks_of_different_sizes_are_an_error_that_names_both(rig: Rig) -> None:
    prompt: dict[str, Any] = without(job(masks=MASK), "record", "split")
    prompt["width"] = node("DistributedValue", default_value="16", worker_values='{"_type": "INT", "1": "24"}')
    prompt["image"] = node("RuleImage", seed=out("seed"), width=out("width"), height=8, batch_size=1, channels=3)
    prompt["mask"] = node("RuleMask", images=out("image"))
    prompt["collect"]["inputs"]["masks"] = out("mask")
    report = rig.run(prompt, items=2)
    assert isinstance(report.error, BatchDiffers)
    assert "item 1 has masks of 24 x 8, item 0 of 16 x 8" in str(report.error)


def test_what_nobody_saves_is_saved_by_the_master_slot_by_slot(rig: Rig) -> None:
    prompt = job(images=IMAGES, audio=AUDIO, latents=LATENT, masks=MASK)
    prompt["record"]["inputs"] = {"label": "last", "images": out("collect")}
    report = rig.run(prompt, items=2)
    assert [value.path.name for value in report.done.collected] == [
        "ComfyUI_audio_00001_.wav", "ComfyUI_latent_00001_.latent", "ComfyUI_mask_00001_.png",
        "ComfyUI_audio_00002_.wav", "ComfyUI_latent_00002_.latent", "ComfyUI_mask_00002_.png",
    ]  # fmt: skip
    assert all(value.path.stat().st_size for value in report.done.collected)
    assert [(value.index, value.slot) for value in report.done.collected[3:]] == [(1, "audio"), (1, "latents"), (1, "masks")]
    assert [file.ref.name for file in report.done.files] == ["last.json"]
