from __future__ import annotations

from dataclasses import replace

import pytest

from distributed_comfy.errors import NoCapableWorker
from distributed_comfy.messages import Capability, Requirement
from distributed_comfy.orchestrator.submit import check_capable
from distributed_comfy.planning.near_names import meant

WORKER = Capability(
    engine="comfyui",
    engine_version="0.3.64",
    device="cpu",
    device_class="cpu",
    node_classes=("CheckpointLoaderSimple", "KSampler", "VAEDecode"),
    choice_lists=(("sd/tiny.safetensors", "other.safetensors"),),
    choices={"CheckpointLoaderSimple": {"ckpt_name": 0}},
)
OTHER = replace(WORKER, node_classes=("SaveImage",), choices={})


def need(*classes: str, model: str = "") -> Requirement:
    choices = (("CheckpointLoaderSimple", "ckpt_name", model),) if model else ()
    return Requirement("", tuple(sorted(classes)), choices, ())


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        (need("KSampelr"), ["KSampler instead of KSampelr"]),
        (need("SaveImagee", "VaeDecode"), ["SaveImage instead of SaveImagee", "VAEDecode instead of VaeDecode"]),
        (need("KSampler", model="sd/tiny.safetensor"), ["sd/tiny.safetensors instead of sd/tiny.safetensor"]),
        (need("KSampler", model="sd/tiny.safetensors"), []),
        (need("NodeOfAnotherPack"), []),
    ],
)  # fmt: skip
def test_the_nearest_name_that_a_worker_has_is_told(requirement: Requirement, words: list[str]) -> None:
    assert meant(requirement, [WORKER, OTHER]) == words


def test_a_prompt_that_nobody_can_run_says_what_was_meant() -> None:
    with pytest.raises(NoCapableWorker, match=r"pc1 lacks node class KSampelr; did you mean KSampler instead of KSampelr\?"):
        check_capable([need("KSampelr")], {"pc1": WORKER})
