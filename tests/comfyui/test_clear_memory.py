"""An order to clear memory reaches the engine of the worker that it names."""
from __future__ import annotations

from tests.cluster_rig import Rig
from tests.comfyui.tiny_prompts import distributed

LOADED = "Requested to load"
"""What ComfyUI logs when it moves a model to its device."""


def loads(rig: Rig, name: str) -> int:
    """How often a worker's engine has loaded a model."""
    log = rig.folder / name / "cache" / "workers" / name / "engine.log"
    return log.read_text(errors="replace").count(LOADED)


def test_a_worker_that_is_told_to_clear_its_memory_loads_its_models_for_the_next_item_and_only_then(comfyui_rig: Rig) -> None:
    rig = comfyui_rig
    rig.cluster.jobs.drain("two")
    try:
        rig.run(distributed(seed=1), items=1)
        warm = loads(rig, "one")
        rig.run(distributed(seed=2), items=2)
        assert warm > 0 and loads(rig, "one") == warm, "warm models were loaded again"
        assert rig.cluster.workers.free("one")
        rig.run(distributed(seed=4), items=1)
        assert loads(rig, "one") == warm + 2, "the model and its VAE"
    finally:
        rig.cluster.jobs.drain("two", drained=False)


def test_nobody_hears_an_order_for_a_worker_that_is_not_there(comfyui_rig: Rig) -> None:
    assert not comfyui_rig.cluster.workers.free("nobody")
