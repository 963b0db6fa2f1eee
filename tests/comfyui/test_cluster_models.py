"""Models on a cluster: loaded once, missing ones named, new ones noticed."""
from __future__ import annotations

import pytest

from distributed_comfy.errors import NoCapableWorker
from tests.cluster_rig import Rig
from tests.comfyui.tiny_prompts import distributed
from tests.prompts import node, out

LOADED = ("model weight dtype", "VAE load device")
"""What ComfyUI prints when it reads a diffusion model or a VAE from disk."""


def loads(rig: Rig) -> dict[str, int]:
    """Worker -> models read from disk so far."""
    texts = {name: worker.engine_log.read_text(errors="replace") for name, worker in rig.workers.items()}
    return {name: sum(text.count(line) for line in LOADED) for name, text in texts.items()}


def warm_up(rig: Rig) -> dict[str, int]:
    """Let both workers run the example; what they have loaded then."""
    rig.wait_idle()
    for seed in range(0, 600, 6):
        report = rig.run(distributed(seed=seed), items=6)
        if {result.worker for index, result in report.done.results.items() if index < 6} == set(rig.workers):
            return loads(rig)
    raise AssertionError("one worker ran everything")


def test_no_item_but_the_first_loads_a_model_nor_does_the_next_job(comfyui_rig: Rig) -> None:
    before = warm_up(comfyui_rig)
    assert all(count > 0 and count % 2 == 0 for count in before.values())
    for seed in (1000, 2000, 3000, 4000):
        report = comfyui_rig.run(distributed(seed=seed), items=6)
        assert len(report.done.files) == 12
    assert loads(comfyui_rig) == before


def test_a_missing_model_is_named_with_the_workers_that_lack_it_before_anything_is_queued(comfyui_rig: Rig) -> None:
    prompt = distributed()
    prompt["2"]["inputs"]["vae_name"] = "sub/none.safetensors"
    jobs = set(comfyui_rig.cluster.jobs.jobs())
    with pytest.raises(NoCapableWorker) as caught:
        comfyui_rig.run(prompt, items=2)
    for part in ("one lacks model 'sub/none.safetensors' for VAELoader.vae_name", "two lacks model"):
        assert part in str(caught.value)
    assert set(comfyui_rig.cluster.jobs.jobs()) == jobs


def test_an_unknown_node_class_is_named_with_the_workers_that_lack_it(comfyui_rig: Rig) -> None:
    prompt = distributed({"end": node("NodeOfAnotherPack", images=out("8"))}, "end")
    with pytest.raises(NoCapableWorker, match="one lacks node class NodeOfAnotherPack; two lacks node class NodeOfAnotherPack"):
        comfyui_rig.run(prompt, items=2)
