"""What ComfyUI's refusal of a prompt says of the workers."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from aiohttp import web

from distributed_comfy.comfyui.foreign import ForeignValues
from distributed_comfy.comfyui.passing import Passing
from distributed_comfy.comfyui.refusals import Asked, with_the_workers
from distributed_comfy.errors import ClusterNotReady
from distributed_comfy.messages import Capability, Prompt
from tests.prompts import capability, txt2img
from tests.unit.test_accepted_prompts import CLASSES

NODE = {"class_type": "CheckpointLoaderSimple", "dependent_outputs": ["save"]}


def prompt_with(model: str) -> Prompt:
    prompt = txt2img()
    prompt["ckpt"]["inputs"]["ckpt_name"] = model
    return prompt


def refusal(model: str) -> dict[str, Any]:
    """As ComfyUI 0.3.64 words it."""
    error = {
        "type": "value_not_in_list", "message": "Value not in list", "details": f"ckpt_name: {model!r} not in ['mine.safetensors']",
        "extra_info": {"input_name": "ckpt_name", "received_value": model},
    }  # fmt: skip
    return {
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation", "details": ""},
        "node_errors": {"ckpt": {**NODE, "errors": [error]}},
    }


def details(model: str, live: Mapping[str, Capability], unanswered: str = "") -> str:
    asked = Asked(prompt_with(model), {"ckpt": ["ckpt_name"]}, live, unanswered)
    answer = with_the_workers(web.json_response(refusal(model), status=400), asked)
    assert isinstance(answer, web.Response) and answer.status == 400
    told: str = json.loads(bytes(answer.body))["node_errors"]["ckpt"]["errors"][0]["details"]  # type: ignore[arg-type]
    before, _, words = told.partition("; ")
    assert before == f"ckpt_name: {model!r} not in ['mine.safetensors']"
    return words


@pytest.mark.parametrize(
    ("model", "workers", "unanswered", "words"),
    [
        ("zebra.ckpt", ["b", "a"], "", "no worker has it either (asked: a, b)"),
        ("sub/bb.safetensors", ["a"], "", "no worker has it either (asked: a; did you mean 'sub/b.safetensors', which a has?)"),
        ("zebra.ckpt", list("abcdefgh"), "", "no worker has it either (asked: a, b, c, d, e, f, 2 more)"),
        ("zebra.ckpt", [], "", "no worker is running that could have it"),
        ("zebra.ckpt", [], "no Redis", "nobody knows whether a worker has it: no Redis"),
    ],
)  # fmt: skip
def test_a_value_that_nobody_has_is_told_with_who_was_asked_and_what_is_near(
    model: str, workers: list[str], unanswered: str, words: str
) -> None:
    assert details(model, {name: capability() for name in workers}, unanswered) == words


@pytest.mark.parametrize(
    "answer",
    [
        {"prompt_id": "1", "number": 1, "node_errors": refusal("x")["node_errors"]},
        {"error": {"type": "prompt_no_outputs", "message": "Prompt has no outputs", "details": ""}, "node_errors": []},
        {"error": "no prompt", "node_errors": {"ckpt": None}},
        ["another version"],
    ],
)  # fmt: skip
def test_an_answer_about_something_else_is_passed_on_as_it_is(answer: Any) -> None:
    given = web.json_response(answer, status=200 if "prompt_id" in answer else 400)
    assert with_the_workers(given, Asked(prompt_with("x"), {"ckpt": ["ckpt_name"]})) is given


def asked_with(live: Callable[[], Mapping[str, Capability]], model: str) -> Asked:
    passing = Passing(ForeignValues(CLASSES), live)
    return asyncio.run(passing._ask(json.dumps({"prompt": prompt_with(model)}).encode()))


def test_workers_are_asked_only_for_what_is_not_here() -> None:
    workers = {"a": capability()}
    assert asked_with(lambda: workers, "mine.safetensors") == Asked()
    assert asked_with(lambda: workers, "other.safetensors") == Asked(
        prompt_with("other.safetensors"), {"ckpt": ["ckpt_name"]}, workers
    )


def test_a_cluster_that_is_not_there_is_the_reason_why_nobody_knows() -> None:
    def live() -> Mapping[str, Capability]:
        raise ClusterNotReady(state="starting")

    found = asked_with(live, "other.safetensors")
    assert found.live == {} and found.unanswered == str(ClusterNotReady(state="starting"))
