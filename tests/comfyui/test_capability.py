"""What an engine says about itself, against what ComfyUI says and does."""
from __future__ import annotations

import time

from distributed_comfy.messages import to_plain
from distributed_comfy.nodes.registry import DISPLAY_NAMES
from tests.comfyui.comfy_process import EngineClient
from tests.comfyui.plain_comfyui import PlainComfyUI
from tests.prompts import node


def test_it_has_the_node_classes_of_plain_comfyui_and_ours(engine: EngineClient, plain: PlainComfyUI) -> None:
    capability = engine.describe()
    ours = set(DISPLAY_NAMES)
    # ComfyUI leaves classes out of /object_info that cannot tell their inputs.
    info = plain.object_info()
    assert set(capability.node_classes) == set(info) | ours | {"ProbeBroken"}
    assert {name for name in info if info[name]["output_node"]} - ours == set(capability.output_classes) - ours
    for name in ("KSampler", "VAEDecode", "ProbeV3", "UNETLoader"):
        assert capability.output_types[name] == tuple(info[name]["output"])


def test_it_is_the_same_each_time_and_quick(engine: EngineClient) -> None:
    began = time.monotonic()
    first = engine.describe()
    assert time.monotonic() - began < 2
    assert to_plain(first) == to_plain(engine.describe())


def test_lists_are_bound_exactly_where_comfyui_refuses_other_values(engine: EngineClient) -> None:
    capability = engine.describe()
    assert capability.choice_lists[capability.choices["UNETLoader"]["unet_name"]] == ("tiny_mmdit.safetensors",)
    assert "euler" in capability.choice_lists[capability.choices["KSampler"]["sampler_name"]]
    assert capability.choices["ProbeSelfValidated"].keys() == {"strict"}
    assert capability.choices["ProbeListing"].keys() == {"vae"}
    assert not {"ProbeRemote", "ProbeBroken"} & capability.choices.keys()
    v3 = node("ProbeV3", images=["noise", 0], mode="z", seed=1)
    refused = "error" in engine.run({"noise": node("TinyNoise", size=8, batch_size=1, seed=3), "v3": v3}, "v3")
    assert ("mode" in capability.choices.get("ProbeV3", {})) == refused


def test_inputs_that_name_files_are_told_apart_marked_or_not(engine: EngineClient) -> None:
    capability = engine.describe()
    assert capability.file_inputs["LoadImage"] == {"image": "input"}
    assert capability.file_inputs["LoadLatent"] == {"latent": "input"}, "no upload mark, but it lists the folder"
    assert capability.file_inputs["ProbeListing"] == {"file": "input"}
    assert "LoadImageOutput" not in capability.file_inputs
    assert not {"LoadImage", "LoadLatent"} & capability.choices.keys()
    assert not list((engine.options.folder / "input").glob("distributed-comfy-*"))


def test_seed_limits_are_exact(engine: EngineClient) -> None:
    limits = engine.describe().seed_limits
    assert limits["KSampler"]["seed"] == str(2**64 - 1)
    assert limits["DistributedSeed"]["seed"] == str(2**50)
    assert limits["ProbeV3"]["seed"] == "77"


def test_the_device_class_names_what_can_change_the_bits(engine: EngineClient) -> None:
    capability = engine.describe()
    assert capability.device == "cpu" and capability.engine == "comfyui"
    assert capability.engine_version.startswith("0.")
    assert "threads, torch 2." in capability.device_class and f"ComfyUI {capability.engine_version}" in capability.device_class
