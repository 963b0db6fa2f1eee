"""Which nodes of an accepted prompt get what they give from a job, and what a ComfyUI is told of names that it does not know."""
from __future__ import annotations

from typing import Any

import pytest

from distributed_comfy.comfyui.accepted import AcceptedPrompt
from distributed_comfy.comfyui.foreign import NODE_CLASS, VALUE_CLASS, ForeignValues, foreign_in, original_of
from distributed_comfy.comfyui.intake import accept
from distributed_comfy.messages import Prompt
from tests.prompts import capability, node, out, txt2img
from tests.upscale_prompts import batch


def accepted(prompt: Prompt, *outputs: str) -> AcceptedPrompt:
    return AcceptedPrompt("id", prompt, prompt, outputs or ("save",))


class Saver:
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}}


class Loader:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"ckpt_name": (["mine.safetensors"],), "note": ("STRING", {})}}


class Other:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}


CLASSES: dict[str, Any] = {
    "SaveImage": Saver, "CheckpointLoaderSimple": Loader,
    **dict.fromkeys(("CLIPTextEncode", "EmptyLatentImage", "DistributedSeed", "KSampler", "VAEDecode", "DistributedCollector"), Other),
}  # fmt: skip


def replaced(prompt: Prompt, *, classes: dict[str, Any] = CLASSES) -> Prompt:
    return ForeignValues(classes).replace(prompt, [capability()])


# -- nodes of a job --------------------------------------------------------------------------------------------------------
def test_a_collector_that_an_output_uses_belongs_to_a_job() -> None:
    assert accepted(txt2img()).job_nodes == {"collect"}


@pytest.mark.parametrize("how", ["unused", "pass_through", "unwired"])
def test_a_collector_that_collects_nothing_does_not(how: str) -> None:
    prompt = txt2img(**({"pass_through": True} if how == "pass_through" else {}))
    if how == "unused":
        prompt["save"]["inputs"]["images"] = out("decode")
    if how == "unwired":
        del prompt["collect"]["inputs"]["images"]
    assert accepted(prompt).job_nodes == frozenset()


def test_collectors_behind_an_upscale_pass_through() -> None:
    prompt = {**batch(), "again": node("DistributedCollector", images=out("up"))}
    prompt["save"]["inputs"]["images"] = out("again")
    assert accepted(prompt).job_nodes == {"collect", "up"}


def test_what_no_wanted_output_needs_is_no_part_of_the_content() -> None:
    prompt = {**txt2img(), "look": node("PreviewImage", images=out("decode"))}
    assert accepted(prompt).content == accepted(txt2img()).content
    assert accepted(prompt, "save", "look").content != accepted(txt2img()).content
    assert accepted(txt2img(seed=1)).content != accepted(txt2img()).content


def test_what_a_look_before_the_collector_needs_runs_anyway() -> None:
    assert accepted(txt2img()).runs_anyway == {"save"}
    prompt = {**txt2img(), "look": node("PreviewImage", images=out("decode"))}
    assert accepted(prompt, "save", "look").runs_anyway == {"save", "look", "ckpt", "pos", "neg", "latent", "seed", "sample", "decode"}


# -- names that only workers know ------------------------------------------------------------------------------------------
def test_a_model_that_only_a_worker_has_becomes_a_link() -> None:
    changed = replaced(txt2img())
    assert changed["ckpt"]["inputs"]["ckpt_name"] == ["ckpt~ckpt_name", 0]
    assert changed["ckpt~ckpt_name"] == {"class_type": VALUE_CLASS, "inputs": {"text": "a.safetensors"}}
    assert foreign_in(changed) == ("model 'a.safetensors'",)
    assert original_of(changed) == txt2img()


def test_windows_names_are_found_on_workers_too() -> None:
    prompt = txt2img()
    prompt["ckpt"]["inputs"]["ckpt_name"] = "sub\\b.safetensors"
    assert replaced(prompt)["ckpt~ckpt_name"]["inputs"]["text"] == "sub\\b.safetensors"


def test_a_model_that_this_comfyui_has_stays() -> None:
    prompt = txt2img()
    prompt["ckpt"]["inputs"] |= {"ckpt_name": "mine.safetensors", "note": "a.safetensors"}
    assert replaced(prompt) is prompt


def test_a_model_that_nobody_has_stays_for_comfyui_to_refuse() -> None:
    prompt = txt2img()
    prompt["ckpt"]["inputs"]["ckpt_name"] = "typo.safetensors"
    changed = replaced(prompt)
    assert changed == prompt and foreign_in(changed) == ()


def test_a_model_that_is_also_needed_behind_the_collector_stays() -> None:
    prompt = {**txt2img(), "again": node("VAEDecode", samples=out("collect", 2), vae=out("ckpt", 2))}
    prompt["save"]["inputs"]["images"] = out("again")
    assert replaced(prompt) == prompt


def test_a_class_that_only_a_worker_has_is_stood_for() -> None:
    prompt = {**txt2img(), "odd": node("ImageBlend", images=out("decode"), strength=0.5)}
    prompt["collect"]["inputs"]["images"] = out("odd")
    prompt["ckpt"]["inputs"]["ckpt_name"] = "mine.safetensors"
    changed = replaced(prompt)
    assert changed["odd"] == node(NODE_CLASS, images=out("decode"), strength=0.5, foreign_class="ImageBlend")
    assert foreign_in(changed) == ("node class ImageBlend",)
    assert original_of(changed) == prompt


def test_workers_are_asked_for_what_is_missing_and_for_nothing_else() -> None:
    prompt = txt2img()
    assert ForeignValues(CLASSES).missing(prompt) == {"ckpt": ["ckpt_name"]}
    assert ForeignValues(CLASSES).replace(prompt, ()) == prompt
    prompt["ckpt"]["inputs"]["ckpt_name"] = "mine.safetensors"
    assert ForeignValues(CLASSES).missing(prompt) == {}
    assert replaced(prompt) is prompt


def test_a_prompt_without_a_job_is_left_alone() -> None:
    prompt = txt2img(pass_through=True)
    assert replaced(prompt) is prompt


# -- what is in the queue counts -----------------------------------------------------------------------------------------
class Queue:
    """Where `accept` looks prompts up, and what it makes jobs of."""

    def __init__(self, **queued: Prompt) -> None:
        self.watch = self
        self.queued = queued
        self.jobs: list[AcceptedPrompt] = []

    def entry(self, prompt_id: str) -> tuple[Any, ...] | None:
        prompt = self.queued.get(prompt_id)
        return None if prompt is None else (0.0, prompt_id, prompt, {"extra_pnginfo": {"workflow": 1}}, ["save"], {})

    def accept(self, prompt: AcceptedPrompt) -> AcceptedPrompt:
        self.jobs.append(prompt)
        return prompt


def test_a_job_is_planned_from_what_comfyui_has_queued() -> None:
    prompt = batch()
    queue: Any = Queue(ours=prompt, stock={"save": node("SaveImage", images=out("load"))})
    job: Any = accept(queue, "ours")
    assert job.planned == job.running == prompt and job.outputs == ("save",) and job.extra_pnginfo == {"workflow": 1}
    prompt["changed later"] = node("Other")
    assert "changed later" not in job.planned, "ComfyUI converts values in what it runs"
    assert accept(queue, "stock") is None and accept(queue, "over") is None and queue.jobs == [job]
