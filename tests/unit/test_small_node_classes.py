"""Values, names, dividers and the empty image: the contracts that saved workflows rely on, and what they do when they run."""
from __future__ import annotations

import itertools
from typing import Any

import pytest

from distributed_comfy.nodes.batches import AudioBatchDivider, DistributedEmptyImage, ImageBatchDivider, part_bounds
from distributed_comfy.nodes.registry import node_classes
from distributed_comfy.nodes.values import DistributedModelName, DistributedValue
from tests.unit.test_node_classes import Board


def called(node_class: Any, **inputs: Any) -> Any:
    return getattr(node_class(), node_class.FUNCTION)(**inputs)


def shape(node_class: Any) -> tuple[Any, ...]:
    """What a workflow file depends on beside the inputs."""
    names, shows = getattr(node_class, "RETURN_NAMES", None), getattr(node_class, "OUTPUT_NODE", False)
    return (node_class.RETURN_TYPES, names, node_class.CATEGORY, shows)


def test_the_value_keeps_its_contract() -> None:
    declared = DistributedValue.INPUT_TYPES()
    assert declared["required"] == {"default_value": ("STRING", {"default": ""}), "worker_values": ("STRING", {"default": "{}"})}
    assert list(declared["hidden"]) == ["is_worker", "worker_id"]
    assert shape(DistributedValue) == (("*",), ("value",), "utils", False)


def test_the_model_name_keeps_its_contract() -> None:
    declared = DistributedModelName.INPUT_TYPES()
    assert declared["required"] == {"text": ("STRING", {"default": ""})}
    assert declared["hidden"] == {"unique_id": "UNIQUE_ID", "extra_pnginfo": "EXTRA_PNGINFO"}
    assert shape(DistributedModelName) == (("*",), ("output",), "utils", True)


@pytest.mark.parametrize(("cls", "name", "prefix", "category"), [
    (ImageBatchDivider, "images", "batch", "image"), (AudioBatchDivider, "audio", "audio", "audio"),
])  # fmt: skip
def test_the_dividers_keep_their_contract(cls: Any, name: str, prefix: str, category: str) -> None:
    kind = "IMAGE" if name == "images" else "AUDIO"
    required = cls.INPUT_TYPES()["required"]
    assert list(required) == [name, "divide_by"] and required[name] == (kind,)
    assert {key: required["divide_by"][1][key] for key in ("default", "min", "max")} == {"default": 2, "min": 1, "max": 10}
    assert shape(cls) == ((kind,) * 10, tuple(f"{prefix}_{number}" for number in range(1, 11)), category, True)


def test_the_empty_image_keeps_its_contract() -> None:
    required = DistributedEmptyImage.INPUT_TYPES()["required"]
    assert [(name, kind[1]["default"], kind[1]["max"]) for name, kind in required.items()] == [
        ("height", 64, 4096), ("width", 64, 4096), ("channels", 3, 4),
    ]  # fmt: skip
    assert shape(DistributedEmptyImage) == (("IMAGE",), None, "image", False)


def test_all_of_them_are_there_for_both_engines() -> None:
    ours = {DistributedValue, DistributedModelName, ImageBatchDivider, AudioBatchDivider, DistributedEmptyImage}
    assert ours <= set(node_classes(Board()).values())


def test_an_undistributed_value_is_the_default_in_its_type() -> None:
    assert called(DistributedValue, default_value="4", worker_values='{"_type": "INT", "1": "9"}', worker_id="1") == (4,)


@pytest.mark.parametrize(("text", "shown", "result"), [
    ("a", ["a"], "a"), (4, ["4"], "4"), (["a", "b"], ["a", "b"], ["a", "b"]), ({"a": 1}, ['{\n    "a": 1\n}'], '{\n    "a": 1\n}'),
])  # fmt: skip
def test_a_model_name_shows_what_it_hands_on(text: Any, shown: list[str], result: Any) -> None:
    assert called(DistributedModelName, text=text) == {"ui": {"text": shown}, "result": (result,)}


@pytest.mark.parametrize("total", [0, 1, 9, 10, 37])
@pytest.mark.parametrize("parts", [1, 2, 3, 10])
def test_parts_follow_each_other_and_the_first_ones_take_the_remainder(total: int, parts: int) -> None:
    bounds = list(part_bounds(total, parts))
    sizes = [end - start for start, end in bounds]
    assert len(bounds) == 10 and bounds[0][0] == 0 and bounds[-1][1] == total
    assert all(first[1] == second[0] for first, second in itertools.pairwise(bounds))
    assert sizes[:parts] == sorted(sizes[:parts], reverse=True) and max(sizes[:parts]) - min(sizes[:parts]) <= 1
    assert not any(sizes[parts:])


def test_a_divided_batch_joins_to_the_same_images() -> None:
    torch = pytest.importorskip("torch")
    images = torch.rand((7, 2, 2, 3))
    parts = called(ImageBatchDivider, images=images, divide_by=3)
    assert [len(part) for part in parts] == [3, 2, 2] + [0] * 7
    assert torch.equal(torch.cat(parts), images) and parts[9].shape == (0, 2, 2, 3)


def test_a_divided_track_joins_to_the_same_samples() -> None:
    torch = pytest.importorskip("torch")
    wave = torch.rand((1, 2, 11))
    parts = called(AudioBatchDivider, audio={"waveform": wave, "sample_rate": 8000}, divide_by=2)
    assert torch.equal(torch.cat([part["waveform"] for part in parts], dim=-1), wave)
    assert [part["waveform"].shape[-1] for part in parts] == [6, 5] + [0] * 8 and {part["sample_rate"] for part in parts} == {8000}


def test_a_track_without_samples_divides_into_silence() -> None:
    torch = pytest.importorskip("torch")
    parts = called(AudioBatchDivider, audio={"waveform": torch.zeros((1, 2, 0)), "sample_rate": 8000}, divide_by=2)
    assert len(parts) == 10 and all(torch.equal(part["waveform"], torch.zeros((1, 2, 1))) for part in parts)


def test_the_empty_image_has_the_size_but_no_image() -> None:
    pytest.importorskip("torch")
    assert called(DistributedEmptyImage, height=8, width=16, channels=4)[0].shape == (0, 8, 16, 4)
