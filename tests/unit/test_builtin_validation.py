"""What the built-in engine refuses, with ComfyUI's error types, and whether another worker might do better."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.errors import ValidationRefused, WorkerLacks
from distributed_comfy.messages import Prompt
from tests.prompts import node, out
from tests.unit.builtin_engine import Bench

GOOD = {"seed": 1, "steps": 1, "width": 16, "height": 16, "batch_size": 1, "style": "auto"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def refused(bench: Bench, prompt: Prompt, *targets: str) -> dict[str, list[str]]:
    """Node id -> the error types of a refusal that holds on every worker."""
    with pytest.raises(ValidationRefused) as caught:
        bench.run(prompt, *targets)
    assert bench.counting.calls == []
    return {node_id: [error["type"] for error in entry["errors"]] for node_id, entry in caught.value.node_errors.items()}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"steps": 0}, "value_smaller_than_min"),
        ({"seed": 2**64}, "value_bigger_than_max"),
        ({"steps": "many"}, "invalid_input_type"),
        ({"steps": ["2"]}, "bad_linked_input"),
        ({"steps": ["2", 7]}, "bad_linked_input"),
        ({"steps": ["2", 0]}, "return_type_mismatch"),
        ({"steps": None}, "invalid_input_type"),
    ],
)
def test_a_wrong_input_has_comfyuis_error_type(bench: Bench, changes: dict[str, Any], kind: str) -> None:
    prompt = {
        "1": node("SeededGenerator", **{**GOOD, **changes}),
        "2": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "3": node("PreviewImage", images=out("1")),
    }
    assert refused(bench, prompt, "3") == {"1": [kind]}


def test_a_missing_input_is_named_and_so_are_the_outputs_that_need_it(bench: Bench) -> None:
    prompt = {"1": node("ImageInvert"), "3": node("PreviewImage", images=out("1")), "4": node("PreviewImage", images=out("1"))}
    with pytest.raises(ValidationRefused, match="node 1 \\(ImageInvert\\): Required input is missing: image") as caught:
        bench.run(prompt, "3", "4")
    entry = caught.value.node_errors["1"]
    assert (entry["dependent_outputs"], entry["class_type"]) == (["3", "4"], "ImageInvert")
    assert set(entry["errors"][0]) == {"type", "message", "details", "extra_info"}


def test_a_class_that_is_not_here_is_what_the_worker_lacks(bench: Bench) -> None:
    with pytest.raises(WorkerLacks, match="worker w1 lacks node class KSamplerAdvanced, node class LatentUpscale") as caught:
        bench.run({"1": node("LatentUpscale", samples=out("2")), "2": node("KSamplerAdvanced")}, "1")
    assert caught.value.retryable


def test_a_list_value_that_is_not_here_is_what_the_worker_lacks(bench: Bench) -> None:
    prompt = {"1": node("SeededGenerator", **{**GOOD, "style": "cubist"}), "3": node("PreviewImage", images=out("1"))}
    with pytest.raises(WorkerLacks, match="'cubist' not in"):
        bench.run(prompt, "3")


def test_a_file_that_did_not_come_along_is_missing_on_every_worker(bench: Bench) -> None:
    prompt = {"1": node("LoadImage", image="cat.png"), "3": node("PreviewImage", images=out("1"))}
    assert refused(bench, prompt, "3") == {"1": ["custom_validation_failed"]}


def test_a_file_outside_the_input_folder_is_none(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    prompt = {"1": node("LoadImage", image="../../secret.png"), "3": node("PreviewImage", images=out("1"))}
    assert refused(bench, prompt, "3") == {"1": ["custom_validation_failed"]}


def test_one_error_that_holds_everywhere_makes_the_whole_a_refusal(bench: Bench) -> None:
    prompt = {"1": node("SeededGenerator", **{**GOOD, "style": "cubist", "steps": 0}), "3": node("PreviewImage", images=out("1"))}
    assert refused(bench, prompt, "3") == {"1": ["value_smaller_than_min", "value_not_in_list"]}


def test_a_cycle_and_a_link_into_nothing_are_refused(bench: Bench) -> None:
    cycle = {"1": node("ImageInvert", image=out("2")), "2": node("ImageInvert", image=out("1")), "3": node("PreviewImage", images=out("1"))}
    with pytest.raises(ValidationRefused, match="feed each other"):
        bench.run(cycle, "3")
    with pytest.raises(ValidationRefused, match="names node 7"):
        bench.run({"3": node("PreviewImage", images=out("7"))}, "3")


def test_what_no_target_needs_is_not_checked(bench: Bench) -> None:
    prompt = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("ImageInvert"),
        "3": node("PreviewImage", images=out("1")),
        "4": node("PreviewImage", images=out("2")),
    }
    assert len(bench.run(prompt, "3").files) == 1


def test_numbers_as_text_are_converted_without_touching_the_callers_prompt(bench: Bench) -> None:
    prompt = {"1": node("EmptyImage", width="8", height=8.0, batch_size=1, color=0), "9": node("DistributedSink", images=out("1"))}
    (capture,) = bench.run(prompt, "9").captures
    assert tuple(capture.value.shape) == (1, 8, 8, 3)
    assert prompt["1"]["inputs"]["width"] == "8"


def test_a_chain_longer_than_pythons_stack_runs(bench: Bench) -> None:
    prompt = {"0": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}
    prompt.update({str(number): node("ImageInvert", image=out(str(number - 1))) for number in range(1, 2001)})
    prompt["sink"] = node("DistributedSink", images=out("2000"))
    assert len(bench.run(prompt, "sink").captures) == 1
