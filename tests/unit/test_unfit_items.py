"""Items that this ComfyUI cannot make, told from those that it can: by values that it did not see when it accepted the prompt."""
from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, ClassVar

from distributed_comfy.comfyui.unfit_items import UnfitItems
from distributed_comfy.messages import Prompt, apply_patches
from distributed_comfy.planning.plan import PlanOptions, plan_job
from tests.prompts import capability, node, out, parsed, txt2img

BIG, OTHER = "big.safetensors", "other.safetensors"


class Loader:
    """What this ComfyUI has; counts how often it is asked."""

    asked: ClassVar[int] = 0

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        Loader.asked += 1
        return {"required": {"ckpt_name": (["a.safetensors"],)}}


class Checking(Loader):
    """Judges the name itself."""

    @classmethod
    def VALIDATE_INPUTS(cls, ckpt_name: str) -> bool:
        return True


class Waiting:
    """A job that a node waits for."""

    def __init__(self, default: str, own: dict[str, str], items: int = 3, loader: type = Loader) -> None:
        prompt = with_models(default, own)
        plan = plan_job(parsed(prompt), PlanOptions(items=items, outer_outputs=("save",)), [capability()])
        self.job: Any = SimpleNamespace(accepted=SimpleNamespace(planned=prompt))
        self.here: list[int] = []
        self.running: Any = SimpleNamespace(
            plan=plan, record=SimpleNamespace(job_id="job"), spool=SimpleNamespace(items=lambda: tuple(self.here))
        )
        host: Any = SimpleNamespace(nodes=SimpleNamespace(NODE_CLASS_MAPPINGS={"CheckpointLoaderSimple": loader}))
        self.unfit = UnfitItems(host)

    @property
    def found(self) -> dict[int, str]:
        return self.unfit.of(self.job, self.running)

    @property
    def left(self) -> str:
        return self.unfit.left(self.job, self.running)


def with_models(default: str, own: dict[str, str]) -> Prompt:
    prompt = txt2img()
    prompt["ckpt"]["inputs"]["ckpt_name"] = out("model")
    return {**prompt, "model": node("DistributedValue", default_value=default, worker_values=json.dumps({"_type": "COMBO", **own}))}


def test_only_the_item_with_a_model_that_is_not_listed_is_unfit() -> None:
    assert Waiting("a.safetensors", {"2": BIG}).found == {2: f"lacks model '{BIG}'"}
    assert Waiting("a.safetensors", {}).found == {}


def test_items_without_a_value_of_their_own_have_the_default() -> None:
    assert sorted(Waiting(BIG, {"1": "a.safetensors"}).found) == [0, 2]


def test_a_class_that_judges_by_itself_is_asked_when_the_item_runs() -> None:
    assert Waiting(BIG, {}, loader=Checking).found == {}


def test_many_items_cost_one_look_per_name() -> None:
    waiting = Waiting("a.safetensors", {str(index): BIG for index in range(1, 60)}, items=60)
    Loader.asked = 0
    assert len(waiting.found) == 59 and len(waiting.found) == 59
    assert Loader.asked == 2


def test_what_is_told_names_the_models_of_items_that_are_not_here() -> None:
    waiting = Waiting("a.safetensors", {"1": BIG, "2": OTHER})
    assert waiting.left == f"this ComfyUI lacks model '{BIG}', lacks model '{OTHER}' (2 items)"
    waiting.here = [0, 1]
    assert waiting.left == f"this ComfyUI lacks model '{OTHER}' (item 2)"
    waiting.here = [0, 1, 2]
    assert waiting.left == ""


def test_an_item_that_could_not_begin_is_one_more_until_the_job_is_over() -> None:
    waiting = Waiting("a.safetensors", {})
    waiting.unfit.add(waiting.job, waiting.running, 1, "could not begin: no")
    assert waiting.left == "this ComfyUI could not begin: no (item 1)"
    waiting.unfit.forget("job")
    assert waiting.left == ""


def test_a_claimed_item_is_judged_by_what_it_runs() -> None:
    waiting = Waiting("a.safetensors", {"1": BIG})
    plan = waiting.running.plan
    whys = []
    for spec in plan.items:
        prompt = apply_patches(dict(plan.prompts[spec.prompt_hash]), spec.patches)
        whys.append(waiting.unfit.why(waiting.job, prompt, spec.patches))
    assert whys == ["", f"lacks model '{BIG}'", ""]
