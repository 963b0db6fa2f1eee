"""Random prompts, cut and run by a small interpreter, against the same prompts run whole.

A value is the tree of everything that went into it, so two values are equal only if the same nodes made them from the same seeds.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import assume, event, given
from hypothesis import strategies as st

from distributed_comfy.errors import NothingToVary, PromptHasNoOutput
from distributed_comfy.messages import Capability, Prompt, apply_patches
from distributed_comfy.planning.plan import JobPlan, PlanOptions, plan_job
from distributed_comfy.workflow.graph import Graph, as_link
from tests.prompts import generate_items, node, out, parsed

OUTPUT_TYPES = {
    "Picture": ("IMAGE", "MASK"),
    "Model": ("MODEL", "CLIP"),
    "Mixed": ("MODEL", "IMAGE"),
    "Tap": ("IMAGE",),
    "DistributedCollector": ("IMAGE", "AUDIO"),
}
WORKER = Capability("toy", "1", tuple(sorted(OUTPUT_TYPES)), output_classes=("Save", "Tap"), output_types=OUTPUT_TYPES)
STAYS = {("Model", 0), ("Model", 1), ("Mixed", 0)}
OUTPUTS = ("Save", "Tap")
SLOTS = {"DistributedSeed": 1, **{name: len(types) for name, types in OUTPUT_TYPES.items()}}
SILENCE = "silence"


BEFORE = ["Picture", "Picture", "Model", "Mixed", "Tap", "Save", "DistributedSeed"]
BEHIND = ["Picture", "Model", "Mixed", "Tap", "Save", "Save", "DistributedCollector"]


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """DAGs of pictures, models, seeds, output nodes and collectors that are not nested (one behind another passes through)."""
    classes = ["DistributedSeed", "Picture", *draw(st.lists(st.sampled_from(BEFORE), min_size=1, max_size=7))]
    classes += ["DistributedCollector"] * draw(st.integers(0, 2)) + draw(st.lists(st.sampled_from(BEHIND), max_size=7))
    prompt: Prompt = {}
    for index, class_type in enumerate(classes):
        unfit = ("Save", "DistributedSeed") if class_type == "DistributedCollector" else ("Save",)
        feeders = [node_id for node_id, one in prompt.items() if one["class_type"] not in unfit]
        chosen = draw(st.lists(st.sampled_from(feeders), min_size=class_type == "DistributedCollector", max_size=3)) if feeders else []
        links = [out(feeder, draw(st.integers(0, SLOTS[prompt[feeder]["class_type"]] - 1))) for feeder in chosen]
        prompt[f"n{index}"] = _node(draw, class_type, links, prompt, f"n{index}")
    order = draw(st.permutations(list(prompt)))
    return {node_id: prompt[node_id] for node_id in order}


def _node(draw: st.DrawFn, class_type: str, links: list[Any], prompt: Prompt, tag: str) -> dict[str, Any]:
    if class_type == "DistributedSeed":
        return node(class_type, seed=draw(st.integers(0, 2**64 - 10)))
    if class_type != "DistributedCollector":
        return node(class_type, tag=tag, **{f"in{number}": link for number, link in enumerate(links)})
    wired = dict(zip(draw(st.permutations(["images", "audio"])), links, strict=False))
    collected = any(prompt[one]["class_type"] == class_type for one in Graph(prompt).upstream([link[0] for link in wired.values()]))
    return node(class_type, **wired, **({"pass_through": True} if collected else {}))


class Machine:
    """Runs targets of one prompt; remembers what ran."""

    def __init__(self, prompt: Prompt, sources: Callable[[str, str], Any] | None = None, item: int = 0) -> None:
        self.prompt, self.sources, self.item = prompt, sources, item
        self.results: dict[str, Any] = {}

    def run(self, node_id: str) -> Any:
        """Outputs of a node, by slot."""
        if node_id not in self.results:
            inputs = {name: self.value(value) for name, value in self.prompt[node_id]["inputs"].items()}
            self.results[node_id] = self.execute(node_id, self.prompt[node_id]["class_type"], inputs)
        return self.results[node_id]

    def value(self, value: Any) -> Any:
        """An input's value."""
        link = as_link(value)
        return self.run(link.node_id)[link.slot] if link else value

    def execute(self, node_id: str, class_type: str, inputs: dict[str, Any]) -> Any:
        """One node."""
        if class_type == "DistributedSeed":
            return [inputs["seed"] + self.item]
        if class_type == "DistributedCollector":
            return [inputs.get("images", "empty"), inputs.get("audio", SILENCE)]
        if class_type == "DistributedSource":
            return self._supply(node_id, inputs["slots"].split(","))
        if class_type == "DistributedSink":
            return {slot: value for slot, value in inputs.items() if slot != "claim_id"}
        content = (class_type, tuple(sorted(inputs.items(), key=lambda entry: entry[0])))
        return [(content, slot) for slot in range(SLOTS.get(class_type, 1))]

    def _supply(self, node_id: str, slots: list[str]) -> list[Any]:
        assert self.sources is not None
        if slots == ["value"]:
            return [self.sources(node_id, "value")]
        images = self.sources(node_id, "images") if "images" in slots else "empty"
        return [images, self.sources(node_id, "audio") if "audio" in slots else SILENCE]


class Whole(Machine):
    """Runs a prompt as the user wrote it: the part before the collectors once per seed, the rest once, on item 0's values."""

    def __init__(self, prompt: Prompt, collectors: set[str], items: int) -> None:
        super().__init__(prompt)
        self.collectors = collectors
        self.branches = [Machine(prompt, item=index) for index in range(items)]
        graph = Graph(prompt)
        self.behind = graph.downstream(collectors)

    def run(self, node_id: str) -> Any:
        if node_id not in self.behind:
            return self.branches[0].run(node_id)
        return super().run(node_id)

    def execute(self, node_id: str, class_type: str, inputs: dict[str, Any]) -> Any:
        if node_id not in self.collectors:
            return super().execute(node_id, class_type, inputs)
        wired = self.prompt[node_id]["inputs"]
        joined = {slot: tuple(branch.value(wired[slot]) for branch in self.branches) for slot in ("images", "audio") if slot in wired}
        return [joined.get("images", "empty"), joined.get("audio", SILENCE)]


def planned(prompt: Prompt, items: int) -> JobPlan:
    try:
        return plan_job(parsed(prompt), PlanOptions(items=items), [WORKER])
    except NothingToVary:
        return plan_job(parsed(prompt), PlanOptions(items=1), [WORKER])
    except PromptHasNoOutput:
        assume(False)
        raise


def run_items(job: JobPlan) -> list[Machine]:
    machines = []
    for item in generate_items(job):
        machine = Machine(apply_patches(dict(job.prompts[item.prompt_hash]), item.patches))
        for target in item.targets:
            machine.run(target)
        machines.append(machine)
    return machines


def run_last(job: JobPlan, items: list[Machine]) -> Machine:
    def supply(node_id: str, slot: str) -> Any:
        if node_id in job.edges:
            return items[0].results[node_id][slot]
        return tuple(item.results[node_id][slot] for item in items)

    last = job.items[-1]
    machine = Machine(dict(job.prompts[last.prompt_hash]), supply)
    for target in last.targets:
        machine.run(target)
    return machine


@given(prompts(), st.integers(1, 3))
def test_items_and_last_stage_make_what_the_whole_prompt_makes(prompt: Prompt, items: int) -> None:
    job = planned(prompt, items)
    collectors = {one.node_id for one in job.collectors}
    whole = Whole(prompt, collectors, len(generate_items(job)))
    machines = run_items(job)
    for index, machine in enumerate(machines):
        for collector in collectors:
            wired = prompt[collector]["inputs"]
            expected = {slot: whole.branches[index].value(wired[slot]) for slot in ("images", "audio") if slot in wired}
            assert machine.results[collector] == expected
        for target in set(job.items[index].targets) - collectors - set(job.edges):
            assert machine.results[target] == whole.branches[index].run(target)
    if job.has_last_stage:
        event("has a last stage")
        event(f"crossing edges: {min(len(job.edges), 2)}")
        last = run_last(job, machines)
        for target in job.items[-1].targets:
            assert last.results[target] == whole.run(target)


@given(prompts(), st.integers(1, 3))
def test_every_stage_is_closed_and_holds_only_what_its_targets_need(prompt: Prompt, items: int) -> None:
    job = planned(prompt, items)
    for key, stage in job.prompts.items():
        targets = {target for item in job.items if item.prompt_hash == key for target in item.targets}
        links = [link for one in stage.values() for value in one["inputs"].values() if (link := as_link(value))]
        assert all(link.node_id in stage for link in links)
        assert Graph(stage).upstream(targets) == set(stage)
        assert all(one["class_type"] != "DistributedSeed" for one in stage.values())
        assert Graph(stage).find_cycle() == ()


@given(prompts(), st.integers(1, 3))
def test_every_output_node_is_the_target_of_one_item_or_of_all_that_vary(prompt: Prompt, items: int) -> None:
    job = planned(prompt, items)
    outputs = {node_id for node_id, one in prompt.items() if one["class_type"] in OUTPUTS}
    behind = Graph(prompt).downstream(one.node_id for one in job.collectors)
    first = set(job.items[0].targets)
    last = set(job.items[-1].targets) if job.has_last_stage else set()
    assert first & outputs == outputs - behind
    assert last == outputs & behind
    if job.collectors:
        assert all(item.targets == tuple(one.node_id for one in job.collectors) for item in generate_items(job)[1:])


@given(prompts(), st.integers(1, 3))
def test_the_last_stage_repeats_nothing_that_item_zero_can_hand_over(prompt: Prompt, items: int) -> None:
    job = planned(prompt, items)
    if not job.has_last_stage:
        return
    graph = Graph(prompt)
    behind = graph.downstream(one.node_id for one in job.collectors)
    varying = graph.downstream(graph.of_class("DistributedSeed"))
    stage = job.prompts[job.items[-1].prompt_hash]
    for node_id in set(stage) & set(prompt) - behind:
        class_type = prompt[node_id]["class_type"]
        assert class_type not in OUTPUTS
        used = {(class_type, slot) for _, _, slot in Graph(stage).consumers[node_id]}
        assert node_id not in varying or used <= STAYS
    for edge in job.edges:
        feeder, slot = edge.split("~")
        assert (prompt[feeder]["class_type"], int(slot)) not in STAYS
        assert feeder in varying or prompt[feeder]["class_type"] in OUTPUTS
