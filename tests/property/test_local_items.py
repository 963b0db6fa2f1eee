"""Random prompts inside a ComfyUI: an item that is added to the prompt it came from makes what it makes on a worker."""
from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from distributed_comfy.comfyui.expansion import CAPTURE_CLASS, END_CLASS, LocalItem, OuterPrompt, expand_item
from distributed_comfy.errors import NothingToVary
from distributed_comfy.messages import Prompt, apply_patches
from distributed_comfy.planning.plan import JobPlan, PlanOptions, plan_job
from distributed_comfy.workflow.graph import Graph, as_link
from tests.prompts import parsed
from tests.property.test_graph_cuts import OUTPUTS, WORKER, Machine, prompts


class Outer(Machine):
    """Runs the prompt as ComfyUI would, with what was added to it; knows what each sink would have taken."""

    def __init__(self, prompt: Prompt) -> None:
        super().__init__(dict(prompt))
        self.captured: dict[str, dict[str, Any]] = {}
        self.ended: list[str] = []

    def execute(self, node_id: str, class_type: str, inputs: dict[str, Any]) -> Any:
        if class_type == CAPTURE_CLASS:
            self.captured[inputs["sink"]] = {name: value for name, value in inputs.items() if name not in ("claim_id", "sink", "after")}
            return ["done"]
        if class_type == END_CLASS:
            self.ended.append(inputs["claim_id"])
            return ["end"]
        return super().execute(node_id, class_type, inputs)


def planned(prompt: Prompt, items: int) -> tuple[JobPlan, tuple[str, ...]]:
    outputs = tuple(node_id for node_id, one in prompt.items() if one["class_type"] in OUTPUTS)
    used = Graph(prompt).upstream(outputs)
    collecting = [one for one in Graph(prompt).of_class("DistributedCollector") if prompt[one]["inputs"].get("pass_through") is not True]
    live = [one for one in collecting if one in used]
    assume(live)
    try:
        return plan_job(parsed(prompt), PlanOptions(items=items, outer_outputs=outputs), [WORKER]), tuple(live)
    except NothingToVary:
        return plan_job(parsed(prompt), PlanOptions(items=1, outer_outputs=outputs), [WORKER]), tuple(live)


@given(prompts(), st.integers(1, 3))
def test_a_job_of_a_running_prompt_is_its_collectors_alone(prompt: Prompt, items: int) -> None:
    job, live = planned(prompt, items)
    assert {one.node_id for one in job.collectors} == set(live)
    assert not job.has_last_stage and job.edges == ()
    needed = Graph(prompt).upstream(live)
    for stage in job.prompts.values():
        assert set(stage) <= needed
    for item in job.items:
        assert {target for target in item.targets if prompt[target]["class_type"] not in OUTPUTS} == set(live)


@given(prompts(), st.integers(1, 3))
def test_an_item_gives_here_what_it_gives_on_a_worker(prompt: Prompt, items: int) -> None:
    job, _ = planned(prompt, items)
    outer = Outer(prompt)
    for item in job.items:
        stage = apply_patches(dict(job.prompts[item.prompt_hash]), item.patches)
        worker = Machine(stage)
        for target in item.targets:
            worker.run(target)
        anyway = frozenset(prompt) if item.index % 2 == 0 else frozenset()
        local = LocalItem(stage, item.targets, f"claim {item.index}", "n0")
        expansion = expand_item(local, OuterPrompt(prompt, prompt, anyway), f"i{item.index}:")
        assert set(expansion.nodes).isdisjoint(outer.prompt)
        outer.prompt |= expansion.nodes
        outer.run(expansion.end)
        event(f"shared nodes: {min(len(expansion.shared), 3)}")
        for collector in job.collectors:
            assert outer.captured[collector.node_id] == worker.results[collector.node_id]
    assert outer.ended == [f"claim {item.index}" for item in job.items]


@settings(suppress_health_check=[HealthCheck.filter_too_much])  # by chance nine of ten prompts are no case of it
@given(prompts(), st.integers(2, 3))
def test_what_does_not_depend_on_the_item_is_shared_and_all_of_item_zero_that_runs_anyway(prompt: Prompt, items: int) -> None:
    job, _ = planned(prompt, items)
    varying = Graph(prompt).downstream(Graph(prompt).of_class("DistributedSeed"))
    for item in job.items:
        stage = apply_patches(dict(job.prompts[item.prompt_hash]), item.patches)
        expansion = expand_item(LocalItem(stage, item.targets, "c", "n0"), OuterPrompt(prompt, prompt, frozenset(prompt)), "x:")
        inner = set(stage) - set(item.targets)
        assert expansion.shared >= (inner if item.index == 0 else inner - varying)
        for node_id, one in expansion.nodes.items():
            links = [link for value in one["inputs"].values() if (link := as_link(value))]
            assert all(link.node_id in expansion.nodes or link.node_id in expansion.shared for link in links), node_id
