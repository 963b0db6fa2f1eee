"""What a stage needs, and how a worker that lacks it is told."""
from __future__ import annotations

from dataclasses import replace

import pytest

from distributed_comfy.messages import Capability, Prompt, Requirement
from distributed_comfy.planning.facts import ClassFacts
from distributed_comfy.planning.requirements import capability_hash, common_class, lacks, matches, requirement_of, signature
from tests.prompts import capability, node, out, txt2img

WORKER = capability()


def need(prompt: Prompt, *known: Capability) -> Requirement:
    return requirement_of(prompt, ClassFacts(known))


def test_own_classes_are_no_requirement() -> None:
    classes = need(txt2img(), WORKER).node_classes
    assert not any(name.startswith("Distributed") for name in classes)
    assert "KSampler" in classes


def test_only_inputs_with_a_list_become_choices() -> None:
    assert need(txt2img(), WORKER).choices == (("CheckpointLoaderSimple", "ckpt_name", "a.safetensors"),)


def test_prompt_texts_of_known_classes_do_not_split_the_signature() -> None:
    other = {**txt2img(), "pos": node("CLIPTextEncode", text="a dog", clip=out("ckpt", 1))}
    assert signature(need(txt2img(), WORKER)) == signature(need(other, WORKER))


def test_a_class_that_no_worker_knows_may_bind_in_short_texts() -> None:
    prompt = {"1": node("GgufLoader", name="m.gguf", notes="first\nsecond", essay="x" * 600, strength=1.0)}
    assert need(prompt).choices == (("GgufLoader", "name", "m.gguf"),)


def test_a_file_to_bring_along_never_binds() -> None:
    assert need({"1": node("LoadImage", image="mine.png")}, WORKER).choices == ()
    assert need({"1": node("LoadImage", image="mine.png")}).choices == ()


def test_lacks_is_empty_where_the_worker_has_all() -> None:
    assert lacks(need(txt2img(), WORKER), WORKER) == []
    assert matches(need(txt2img(), WORKER), WORKER)


def test_lacks_names_class_model_engine_and_tag() -> None:
    prompt = {"1": node("CheckpointLoaderSimple", ckpt_name="gone.safetensors"), "2": node("FaceFix", x=out("1"))}
    required = requirement_of(prompt, ClassFacts([WORKER]), engine="builtin", tags=["fast"])
    assert lacks(required, WORKER) == [
        "engine builtin (it has comfyui)",
        "tag fast",
        "node class FaceFix",
        "model 'gone.safetensors' for CheckpointLoaderSimple.ckpt_name",
    ]


def test_a_value_that_is_no_file_is_called_a_value() -> None:
    worker = replace(WORKER, choice_lists=(("euler",),), choices={"KSampler": {"sampler_name": 0}})
    assert lacks(need({"1": node("KSampler", sampler_name="heun")}, worker), worker) == ["value 'heun' for KSampler.sampler_name"]


def test_windows_separators_name_the_same_model() -> None:
    assert matches(need({"1": node("CheckpointLoaderSimple", ckpt_name="sub\\b.safetensors")}, WORKER), WORKER)


def test_a_choice_binds_only_where_the_worker_lists_that_input() -> None:
    required = need({"1": node("CheckpointLoaderSimple", ckpt_name="gone.safetensors")}, WORKER)
    assert matches(required, replace(WORKER, choices={}))
    assert not matches(required, WORKER)


def test_workers_that_differ_in_their_device_alone_share_a_hash() -> None:
    assert capability_hash(capability(device="cuda:0")) == capability_hash(capability(device="cuda:1"))
    assert capability_hash(WORKER) != capability_hash(capability(choice_lists=(("a.safetensors",), ("x.png",))))


@pytest.mark.parametrize("change", [{"engine": "comfyui"}, {"tags": ("a",)}, {"node_classes": ("KSampler",)}])
def test_a_signature_tells_requirements_apart(change: dict[str, object]) -> None:
    base = Requirement("", ())
    assert signature(base) == signature(Requirement("", ()))
    assert signature(base) != signature(replace(base, **change))  # type: ignore[arg-type]


def test_a_job_of_one_device_class_runs_on_no_other() -> None:
    required = replace(need(txt2img(), WORKER), device_class="H100|torch 2.9")
    assert matches(required, replace(WORKER, device_class="H100|torch 2.9"))
    assert lacks(required, replace(WORKER, device_class="L4")) == ["device class H100|torch 2.9 (it has L4)"]
    assert signature(required) != signature(need(txt2img(), WORKER))


def test_the_common_class_has_the_most_workers_that_can_run_the_job() -> None:
    fast, slow, other = (replace(WORKER, device_class=name) for name in ("fast", "slow", "other"))
    required, last = need(txt2img(), WORKER), Requirement("", ("Saver",))
    assert common_class(required, None, [fast, slow, slow]) == "slow"
    assert common_class(required, None, [slow, fast]) == common_class(required, None, [fast, slow]) == "fast", "not by who came first"
    cannot = replace(other, node_classes=("Saver",))
    assert common_class(required, None, [cannot, cannot, fast]) == "fast"
    whole = replace(fast, node_classes=(*fast.node_classes, "Saver"))
    assert common_class(required, last, [slow, slow, whole]) == "fast", "it can run the last stage, too"
    assert common_class(required, last, [slow, cannot]) == "slow"
    assert common_class(required, None, [cannot]) == ""
