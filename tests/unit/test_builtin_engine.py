"""The built-in engine: caching, lists, failures, interrupts, files, capability."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from distributed_comfy.engine.builtin import create_engine
from distributed_comfy.engine.builtin.engine import torch_version
from distributed_comfy.engine.builtin.executor import Executor
from distributed_comfy.engine.builtin.image_nodes import resized
from distributed_comfy.errors import BlobMissing, EngineStartFailed, ItemInterrupted, NodeFailed, OutOfMemory, SinkDidNotRun
from distributed_comfy.messages import Prompt, TensorRef
from distributed_comfy.transport.values import store_value
from tests.prompts import node, out
from tests.unit.builtin_engine import Bench, RecordingSink

SMALL = {"steps": 3, "width": 32, "height": 24, "batch_size": 1, "style": "auto"}


class Splits:
    """One value for each number, as a list."""

    RETURN_TYPES = ("INT", "STRING")
    OUTPUT_IS_LIST = (True, False)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"count": ("INT", {"min": 0})}}

    def run(self, count: int) -> tuple[list[int], str]:
        return list(range(count)), "one"


class Joins:
    """Text of two inputs; called once for each position of the longer list."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"number": ("INT", {}), "text": ("STRING", {})}, "hidden": {"unique_id": "UNIQUE_ID"}}

    def run(self, number: int, text: str, unique_id: str) -> tuple[str]:
        return (f"{unique_id}:{number}{text}",)


class Breaks:
    """Raises what it is told to."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"how": (["value", "memory", "allocator"],)}}

    def run(self, how: str) -> Any:
        if how == "memory":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        if how == "allocator":
            return (torch.empty(2**55),)
        raise ValueError("the user's own mistake")


class Changes:
    """Never the same twice, as IS_CHANGED says with NaN."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> float:
        return float("nan")

    def run(self) -> tuple[int]:
        return (1,)


EXTRA: dict[str, type] = {"Splits": Splits, "Joins": Joins, "Breaks": Breaks, "Changes": Changes}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, EXTRA)


def picture(seed: int = 1) -> Prompt:
    return {"1": node("SeededGenerator", seed=seed, **SMALL), "9": node("DistributedSink", images=out("1"))}


def test_the_sink_takes_what_the_generator_made(bench: Bench) -> None:
    outcome = bench.run(picture(), "9")
    (capture,) = outcome.captures
    assert (capture.node_id, capture.slot, capture.list_index, tuple(capture.value.shape)) == ("9", "images", 0, (1, 24, 32, 3))
    assert outcome.blocked == ()


def test_a_second_item_runs_its_sink_and_nothing_upstream(bench: Bench) -> None:
    bench.run(picture(), "9")
    assert bench.counting.calls == ["SeededGenerator", "DistributedSink"]
    second = bench.run(picture(), "9")
    assert bench.counting.calls == ["DistributedSink"]
    assert len(second.captures) == 1


def test_another_seed_runs_again_what_depends_on_it_only(bench: Bench) -> None:
    prompt = picture()
    prompt["2"] = node("EmptyImage", width=8, height=8, batch_size=1, color=0)
    prompt["3"] = node("ImageBatch", image1=out("1"), image2=out("2"))
    prompt["9"]["inputs"]["images"] = out("3")
    bench.run(prompt, "9")
    prompt["1"]["inputs"]["seed"] = 2
    bench.run(prompt, "9")
    assert bench.counting.calls == ["SeededGenerator", "ImageBatch", "DistributedSink"]


def test_what_a_prompt_does_not_use_is_forgotten_after_it(bench: Bench) -> None:
    bench.run(picture(1), "9")
    bench.run(picture(2), "9")
    bench.run(picture(1), "9")
    assert bench.counting.calls == ["SeededGenerator", "DistributedSink"]


def test_output_nodes_write_their_file_each_time(bench: Bench) -> None:
    prompt = picture()
    prompt["3"] = node("SaveImage", images=out("1"), filename_prefix="a/b")
    outcomes = [bench.run(prompt, "3") for _ in range(2)]
    assert bench.counting.calls == ["SaveImage"]
    for outcome in outcomes:
        (file,) = outcome.files
        assert (file.name, file.folder, file.node_id) == ("a/b_00001_.png", "output", "3")
        assert file.path.exists()
    assert outcomes[0].files[0].path != outcomes[1].files[0].path


def test_a_node_whose_world_changes_always_runs(bench: Bench) -> None:
    prompt = {"1": node("Changes"), "9": node("DistributedSink", value=out("1"))}
    for _ in range(2):
        bench.run(prompt, "9")
        assert bench.counting.calls == ["Changes", "DistributedSink"]


def test_a_list_calls_a_plain_node_once_for_each_value_and_a_sink_once_in_all(bench: Bench) -> None:
    prompt = {
        "1": node("Splits", count=3),
        "12:5": node("Joins", number=out("1"), text=out("1", 1)),
        "9": node("DistributedSink", value=out("12:5")),
    }
    outcome = bench.run(prompt, "9")
    assert [(c.list_index, c.value) for c in outcome.captures] == [(0, "12:5:0one"), (1, "12:5:1one"), (2, "12:5:2one")]
    assert bench.counting.calls == ["Splits", "Joins", "Joins", "Joins", "DistributedSink"]


def test_a_sink_that_got_an_empty_list_is_told_as_blocked(bench: Bench) -> None:
    outcome = bench.run({"1": node("Splits", count=0), "9": node("DistributedSink", value=out("1"))}, "9")
    assert (list(outcome.captures), outcome.blocked) == ([], ("9",))


def test_a_sink_without_any_wire_did_not_run(bench: Bench) -> None:
    with pytest.raises(SinkDidNotRun) as caught:
        bench.run({"9": node("DistributedSink")}, "9")
    assert caught.value.node_id == "9"


def test_a_node_that_raises_is_told_with_everything(bench: Bench) -> None:
    with pytest.raises(NodeFailed, match="node 4 \\(Breaks\\) raised ValueError: the user's own mistake") as caught:
        bench.run({"4": node("Breaks", how="value"), "9": node("DistributedSink", images=out("4"))}, "9")
    assert any('raise ValueError("the user\'s own mistake")' in line for line in caught.value.traceback)
    assert not caught.value.retryable


@pytest.mark.parametrize("how", ["memory", "allocator"])
def test_full_memory_is_freed_and_can_be_tried_elsewhere(bench: Bench, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    freed, clear = list[Executor](), Executor.clear
    monkeypatch.setattr(Executor, "clear", lambda executor: (clear(executor), freed.append(executor)))
    bench.run(picture(), "9")
    prompt = {**picture(), "4": node("Breaks", how=how), "3": node("PreviewImage", images=out("4"))}
    with pytest.raises(OutOfMemory) as caught:
        bench.run(prompt, "9", "3")
    assert (caught.value.node_id, caught.value.retryable) == ("4", True)
    assert len(freed) == 1, "what the device holds for nobody is given back to it"
    bench.run(picture(), "9")
    assert bench.counting.calls == ["SeededGenerator", "DistributedSink"]  # the cache was given up


def test_an_interrupt_stops_between_two_steps(bench: Bench) -> None:
    sink = RecordingSink(on_progress=lambda value: bench.engine.interrupt("c1") if value == 2 else None)
    prompt = picture()
    prompt["1"]["inputs"]["steps"] = 100
    with pytest.raises(ItemInterrupted, match="j-0"):
        bench.run(prompt, "9", sink=sink)
    assert sink.steps[-1] == ("1", 2, 100)


def test_an_interrupt_that_comes_before_its_run_is_remembered_and_then_forgotten(bench: Bench) -> None:
    bench.engine.interrupt("c1")
    with pytest.raises(ItemInterrupted):
        bench.run(picture(), "9")
    assert bench.counting.calls == []
    assert len(bench.run(picture(), "9", claim_id="c1").captures) == 1


def test_every_step_of_every_picture_is_reported(bench: Bench) -> None:
    sink = RecordingSink()
    prompt = picture()
    prompt["1"]["inputs"]["batch_size"] = 2
    bench.run(prompt, "9", sink=sink)
    assert [value for _, value, _ in sink.steps] == [1, 2, 3, 4, 5, 6]
    assert {maximum for _, _, maximum in sink.steps} == {6}
    assert all(preview.startswith(b"\xff\xd8") for preview in sink.previews)
    assert len(sink.previews) == 4


def test_the_last_stage_gets_what_was_collected_and_a_lost_blob_is_no_fault_of_the_node(bench: Bench) -> None:
    images = torch.rand(2, 4, 4, 3)
    value = store_value(bench.blobs, "v", images, job_id="j", limit_bytes=2**20)
    prompt = {
        "5": node("DistributedSource", slots="images"),
        "6": node("ImageInvert", image=out("5")),
        "9": node("DistributedSink", images=out("6")),
    }
    (capture,) = bench.run(prompt, "9", kind="last", feed={"5": {"images": (value,)}}).captures
    assert torch.equal(capture.value, 1 - images)
    with pytest.raises(BlobMissing):
        bench.run(prompt, "9", kind="last", feed={"5": {"images": (TensorRef("gone#1", "float32", (1, 4, 4, 3), 192),)}})


def test_metadata_holds_the_users_prompt_and_not_the_cut_one(bench: Bench) -> None:
    prompt = {**picture(), "3": node("SaveImage", images=out("1"), filename_prefix="x")}
    original: Prompt = {"1": node("SeededGenerator", seed=0), "7": node("DistributedCollector", images=out("1"))}
    outcome = bench.run(prompt, "3", original_prompt=original, extra_pnginfo={"workflow": {"nodes": [1]}, "note": "ü"})
    with Image.open(outcome.files[0].path) as saved:
        info = dict(saved.info)
    assert {key: json.loads(text) for key, text in info.items()} == {"prompt": original, "workflow": {"nodes": [1]}, "note": "ü"}


def test_a_failed_run_leaves_no_file_for_the_next_to_count(bench: Bench) -> None:
    prompt = {**picture(), "3": node("SaveImage", images=out("1"), filename_prefix="x"), "4": node("Breaks", how="value")}
    prompt["8"] = node("PreviewImage", images=out("4"))
    with pytest.raises(NodeFailed):
        bench.run(prompt, "3", "8")
    assert bench.run(prompt, "3").files[0].name == "x_00001_.png"


def test_a_prefix_cannot_leave_the_output_folder(bench: Bench) -> None:
    with pytest.raises(NodeFailed, match="leads out"):
        bench.run({**picture(), "3": node("SaveImage", images=out("1"), filename_prefix="../../x")}, "3")


def test_the_capability_says_what_planning_asks_for(bench: Bench) -> None:
    capability = bench.engine.describe()
    assert {"LoadImage", "SaveImage", "SeededGenerator", "DistributedSink", "DistributedCollector"} <= set(capability.node_classes)
    ours = ("AudioBatchDivider", "DistributedModelName", "DistributedSink", "ImageBatchDivider")
    assert capability.output_classes == (*ours, "PreviewImage", "SaveImage")
    assert capability.file_inputs == {"LoadImage": {"image": "input"}}
    assert "LoadImage" not in capability.choices  # its files come along with the item
    styles = capability.choice_lists[capability.choices["SeededGenerator"]["style"]]
    assert "silk" in styles
    assert capability.seed_limits["SeededGenerator"]["seed"] == str(2**64 - 1)
    assert capability.output_types["LoadImage"] == ("IMAGE", "MASK")
    assert capability.device_class == f"cpu|torch {torch.__version__}|builtin 0.1.0"
    assert (capability.device, capability.tags, capability.engine) == ("cpu", ("t",), "builtin")


def test_the_capability_does_not_change_with_the_files_of_an_item(bench: Bench) -> None:
    before = bench.engine.describe()
    (bench.folders.input / "dc-x.png").write_bytes(b"")
    assert bench.engine.describe() == before


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"])
def test_scaling_gives_the_size_that_was_asked_for(method: str) -> None:
    images = torch.rand(2, 20, 31, 3)
    assert resized(images, (13, 40), method=method, centred=True).shape == (2, 40, 13, 3)


def test_the_version_of_torch_is_known_without_an_import_of_it() -> None:
    assert torch_version() == torch.__version__


def test_a_torch_that_is_missing_is_told_when_the_engine_starts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # what Python takes for "not there"
    with pytest.raises(EngineStartFailed) as caught:
        create_engine(bench.engine._options, bench.engine._context, lambda context: {})
    reason = f"the built-in engine needs torch (No module named 'torch'); {sys.executable} -m pip install torch"
    assert caught.value.fields["reason"] == reason
