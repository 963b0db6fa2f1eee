"""Which models a prompt needs, who lacks them, where they belong and what may be meant instead."""
from __future__ import annotations

from distributed_comfy.messages import Capability, Requirement
from distributed_comfy.planning.model_files import Choice, all_models, find_needs

CLASSES = ("Checkpoint", "KSampler", "Lora")


def worker(checkpoints: tuple[str, ...] = (), loras: tuple[str, ...] = (), classes: tuple[str, ...] = CLASSES) -> Capability:
    lists = (checkpoints, ("None", *loras), loras, ("euler", "ddim"))
    has = {"Checkpoint": {"ckpt_name": 0}, "Lora": {"lora_name": 1}, "KSampler": {"sampler_name": 3}}
    return Capability(
        engine="comfyui",
        engine_version="1",
        node_classes=tuple(sorted(classes)),
        choice_lists=lists,
        choices={name: inputs for name, inputs in has.items() if name in classes},
        model_lists={folder: index for folder, index in (("checkpoints", 0), ("loras", 2)) if lists[index]},
        model_inputs={"Checkpoint": {"ckpt_name": "checkpoints"}, "Lora": {"lora_name": "loras"}},
    )


def need(*choices: tuple[str, str, str], classes: tuple[str, ...] = ("Checkpoint",)) -> Requirement:
    return Requirement("", classes, tuple(sorted(choices)))


def test_every_model_is_told_with_who_lacks_it() -> None:
    live = {"a": worker(("x.safetensors", "y.safetensors")), "b": worker(("x.safetensors",), ("l.safetensors",))}
    checkpoints = [("Checkpoint", "ckpt_name", name) for name in ("y.safetensors", "x.safetensors")]
    found = find_needs(need(*checkpoints, ("Lora", "lora_name", "l.safetensors")), live)
    assert [(model.folder, model.name, model.lacked_by) for model in found.models] == [
        ("checkpoints", "x.safetensors", ()), ("checkpoints", "y.safetensors", ("b",)), ("loras", "l.safetensors", ("a",)),
    ]  # fmt: skip
    assert found.missing and not found.values and not found.classes
    assert not find_needs(need(("Checkpoint", "ckpt_name", "x.safetensors")), live).missing


def test_the_same_file_in_another_folder_comes_before_a_similar_name() -> None:
    live = {"a": worker(("sub/photo_v2.safetensors", "photo_v1.safetensors"))}
    found = find_needs(need(("Checkpoint", "ckpt_name", "photo_v2.safetensors")), live).models[0]
    assert found.near == "sub/photo_v2.safetensors"
    found = find_needs(need(("Checkpoint", "ckpt_name", "Photo_V3.safetensors")), live).models[0]
    assert found.near in ("photo_v1.safetensors", "sub/photo_v2.safetensors")
    assert find_needs(need(("Checkpoint", "ckpt_name", "zzz.ckpt")), live).models[0].near == ""


def test_a_worker_without_the_node_class_may_have_the_file_all_the_same() -> None:
    live = {"a": worker(("x.safetensors",), classes=("KSampler",)), "b": worker((), ("l.safetensors",), classes=("KSampler",))}
    found = find_needs(need(("Checkpoint", "ckpt_name", "x.safetensors")), live)
    assert found.classes == {"Checkpoint": ("a", "b")}
    assert [model.lacked_by for model in found.models] == [("b",)]


def test_a_value_that_is_no_model_is_told_only_where_it_is_lacking() -> None:
    live = {"a": worker(("x.safetensors",))}
    found = find_needs(need(("KSampler", "sampler_name", "eular"), classes=()), live)
    assert found.models == () and found.missing
    assert found.values == (Choice("", "eular", "KSampler", "sampler_name", ("a",), "euler"),)
    assert not find_needs(need(("KSampler", "sampler_name", "euler"), classes=()), live).missing


def test_a_folder_about_which_no_worker_tells_is_the_one_with_the_file_or_the_usual_one() -> None:
    live = {"a": worker(("x.safetensors",), ("odd.safetensors",))}
    names = {"vae_name": "v.safetensors", "some_file": "odd.safetensors", "strange": "s.gguf"}
    found = find_needs(need(*(("OfAPack", name, value) for name, value in names.items()), classes=("OfAPack",)), live)
    assert {model.input: model.folder for model in found.models} == {"vae_name": "vae", "some_file": "loras", "strange": ""}


def test_all_models_are_listed_once_with_who_has_them() -> None:
    live = {"b": worker(("x.safetensors", "y.safetensors")), "a": worker(("x.safetensors",), ("l.safetensors",))}
    assert all_models(live) == {
        ("checkpoints", "x.safetensors"): ("a", "b"), ("checkpoints", "y.safetensors"): ("b",), ("loras", "l.safetensors"): ("a",),
    }  # fmt: skip
    assert all_models({"a": worker()}) == {}
