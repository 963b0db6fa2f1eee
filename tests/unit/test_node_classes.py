"""The node classes: the contracts that saved workflows rely on, and what they do when they run."""
from __future__ import annotations

import logging
from typing import Any

import pytest

from distributed_comfy.nodes.collector import DistributedCollector
from distributed_comfy.nodes.cut import AnyType
from distributed_comfy.nodes.registry import DISPLAY_NAMES, node_classes
from distributed_comfy.nodes.seed import DistributedSeed


class Board:
    """A context that keeps what sinks give, and hands it to sources."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], list[Any]] = {}

    def capture(self, node_id: str, slot: str, values: list[Any]) -> None:
        self.values[node_id, slot] = values

    def supply(self, node_id: str, slot: str) -> list[Any]:
        return self.values[node_id, slot]


def test_the_seed_keeps_its_contract() -> None:
    declared = DistributedSeed.INPUT_TYPES()
    assert declared["required"] == {"seed": ("INT", {"default": 1125899906842, "min": 0, "max": 1125899906842624})}
    assert declared["hidden"] == {"is_worker": ("BOOLEAN", {"default": False}), "worker_id": ("STRING", {"default": ""})}
    assert (DistributedSeed.RETURN_TYPES, DistributedSeed.RETURN_NAMES, DistributedSeed.CATEGORY) == (("INT",), ("seed",), "utils")
    assert getattr(DistributedSeed(), DistributedSeed.FUNCTION)(seed=7, is_worker=False, worker_id="") == (7,)


def test_the_collector_keeps_its_contract() -> None:
    declared = DistributedCollector.INPUT_TYPES()
    names = ["images", "load_balance", "audio", "latents", "masks", "items", "on_missing", "save_prefix"]
    assert list(declared["optional"]) == names, "old slots first"
    assert not declared["required"], "audio alone will do, and old prompts know no load_balance"
    assert declared["optional"]["load_balance"][1]["default"] is False
    assert declared["optional"]["on_missing"][0] == ["error", "drop", "repeat"]
    defaults = {name: kind[1]["default"] for name, kind in declared["hidden"].items()}
    assert defaults == {
        "multi_job_id": "", "is_worker": False, "master_url": "", "enabled_worker_ids": "[]",
        "worker_batch_size": 1, "worker_id": "", "pass_through": False, "delegate_only": False,
    }
    assert DistributedCollector.RETURN_TYPES[:2] == ("IMAGE", "AUDIO") and DistributedCollector.RETURN_NAMES[:2] == ("images", "audio")
    assert DistributedCollector.CATEGORY == "image"
    assert not hasattr(DistributedCollector, "OUTPUT_NODE")


def test_every_class_has_a_name_to_show() -> None:
    classes = node_classes(Board())
    assert set(classes) == set(DISPLAY_NAMES)
    assert (DISPLAY_NAMES["DistributedSeed"], DISPLAY_NAMES["DistributedCollector"]) == ("Distributed Seed", "Distributed Collector")


def test_an_undistributed_collector_passes_images_on_and_adds_silence(caplog: pytest.LogCaptureFixture) -> None:
    torch = pytest.importorskip("torch")
    images = torch.ones((2, 4, 4, 3))
    with caplog.at_level(logging.INFO):
        passed, audio, latents, masks = getattr(DistributedCollector(), DistributedCollector.FUNCTION)(images=images, pass_through=True)
    assert passed is images
    assert audio["sample_rate"] == 44100
    assert torch.equal(audio["waveform"], torch.zeros((1, 2, 1)))
    assert latents["samples"].shape == (0, 4, 8, 8) and masks.shape == (0, 64, 64)
    assert len(caplog.records) == 1


def test_an_undistributed_collector_of_audio_alone_gives_no_images() -> None:
    torch = pytest.importorskip("torch")
    sound = {"waveform": torch.ones((1, 1, 5)), "sample_rate": 8000}
    images, audio, latents, masks = DistributedCollector().run(audio=sound, latents="latent", masks="mask", items=3, multi_job_id="x")
    assert images.shape == (0, 64, 64, 3)
    assert (audio, latents, masks) == (sound, "latent", "mask")


def test_a_sink_hands_each_wired_list_to_its_context() -> None:
    board = Board()
    sink = node_classes(board)["DistributedSink"]
    assert sink.INPUT_IS_LIST and sink.OUTPUT_NODE
    assert getattr(sink(), sink.FUNCTION)(claim_id=["c"], unique_id=["12:5"], images=["a", "b"], audio=["x"]) == {}
    assert board.values == {("12:5", "images"): ["a", "b"], ("12:5", "audio"): ["x"]}


def test_a_source_gives_collected_batches_in_the_collectors_slots() -> None:
    torch = pytest.importorskip("torch")
    board = Board()
    board.values["9", "images"] = ["batch"]
    source = node_classes(board)["DistributedSource"]
    assert source.OUTPUT_IS_LIST == (True,) * 4
    images, audio, latents, masks = getattr(source(), source.FUNCTION)(claim_id="c", slots="images", unique_id="9")
    assert images == ["batch"] and latents[0]["samples"].shape == (0, 4, 8, 8) and masks[0].shape == (0, 64, 64)
    assert len(audio) == 1 and torch.equal(audio[0]["waveform"], torch.zeros((1, 2, 1)))
    board.values["9", "audio"] = ["sound"]
    board.values["9", "masks"] = ["mask"]
    images, audio, _, masks = source().supply(claim_id="c", slots="audio,masks", unique_id="9")
    assert images[0].shape == (0, 64, 64, 3)
    assert (audio, masks) == (["sound"], ["mask"])


def test_a_source_of_an_edge_gives_the_list_as_captured() -> None:
    board = Board()
    classes = node_classes(board)
    classes["DistributedSink"]().capture(claim_id=["c"], unique_id=["4~1"], value=[1, 2, 3])
    assert classes["DistributedSource"]().supply(claim_id="d", slots="value", unique_id="4~1") == ([1, 2, 3], [], [], [])


def test_a_source_without_values_gives_the_engines_marker() -> None:
    board = Board()
    board.values["9", "images"] = board.values["4~1", "value"] = []
    source = node_classes(board, nothing=["blocked"])["DistributedSource"]
    assert source().supply(claim_id="c", slots="images", unique_id="9")[0] == ["blocked"]
    assert source().supply(claim_id="c", slots="value", unique_id="4~1")[0] == ["blocked"]


def test_two_engines_do_not_share_a_context() -> None:
    first, second = Board(), Board()
    one, other = node_classes(first)["DistributedSink"], node_classes(second)["DistributedSink"]
    one().capture(claim_id=["c"], unique_id=["1"], value=[1])
    other().capture(claim_id=["c"], unique_id=["1"], value=[2])
    assert (first.values["1", "value"], second.values["1", "value"]) == ([1], [2])


@pytest.mark.parametrize("received", ["IMAGE", "*", ["a", "b"], ("x",), AnyType("AUDIO")])
def test_the_any_type_is_unequal_to_nothing_on_either_side(received: Any) -> None:
    anything = AnyType("IMAGE")
    assert not received != anything  # ComfyUI's own comparison  # noqa: SIM202
    assert not anything != received  # noqa: SIM202
    assert anything == "IMAGE"
    assert hash(anything) == hash("IMAGE")
