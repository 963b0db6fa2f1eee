"""Random prompts with an upscale, cut and run stage by stage by a small interpreter, against the same prompts run whole.

One tile stands for all of them: it gets the whole image, so what it makes must be what the nodes in the upscale's place make of it.
"""
from __future__ import annotations

from typing import Any

from hypothesis import assume, event, given
from hypothesis import strategies as st

from distributed_comfy.errors import BadInput, NothingToVary, PromptHasNoOutput, UpscaleOfItems, UpscaleUnused
from distributed_comfy.messages import Capability, Prompt, apply_patches
from distributed_comfy.planning.plan import JobPlan, PlanOptions, plan_job
from distributed_comfy.tile_stage import ValuePlace
from distributed_comfy.workflow.classes import (
    COLLECTOR_CLASS,
    SEED_CLASS,
    SOURCE_CLASS,
    TILE_IMAGE_CLASS,
    TILE_INPUT_NAMES,
    TILE_INPUTS_CLASS,
    TILE_LATENT_CLASS,
    TILE_PIXELS_CLASS,
    TILE_REGIONS_CLASS,
    UPSCALE_CLASS,
)
from distributed_comfy.workflow.graph import Graph, as_link
from tests.prompts import generate_items, node, out, parsed
from tests.property.test_graph_cuts import Machine, Whole

TYPES = {
    "Picture": ("IMAGE", "MASK"), "Model": ("MODEL", "CLIP"), "Mixed": ("MODEL", "IMAGE"), "Tap": ("IMAGE",), "Text": ("CONDITIONING",),
    "Vae": ("VAE",), "Count": ("INT",), COLLECTOR_CLASS: ("IMAGE", "AUDIO"), UPSCALE_CLASS: ("IMAGE",),
}  # fmt: skip
OUTPUTS = ("Save", "Tap")
WORKER = Capability("toy", "1", tuple(sorted(TYPES)), output_classes=OUTPUTS, output_types=TYPES)
BEFORE = ["Picture", "Picture", "Model", "Mixed", "Tap", "Save", SEED_CLASS, "Text", "Count"]
BETWEEN = ["Picture", "Picture", "Mixed", "Tap", "Save", "Text", "Count"]
BEHIND = ["Picture", "Model", "Tap", "Save", "Save", COLLECTOR_CLASS]
TENSORS = {"IMAGE", "MASK", "AUDIO"}
WIDGETS = {"steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5}
UP = "up"


class Drawing:
    """A prompt that grows node by node; links go to nodes that are there already."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.prompt = draw, {}  # type: tuple[st.DrawFn, Prompt]

    def outputs(self, kind: str = "") -> list[Any]:
        """Every output there is, of one type or of any."""
        types = {**TYPES, SEED_CLASS: ("INT",)}
        return [
            out(node_id, slot)
            for node_id, one in self.prompt.items()
            for slot, found in enumerate(types.get(one["class_type"], ()))
            if kind in ("", found) and (one["class_type"] != COLLECTOR_CLASS or slot == 0)
        ]

    def add(self, class_type: str) -> str:
        """One more node, linked to some that are there."""
        node_id = f"n{len(self.prompt)}"
        if class_type == SEED_CLASS:
            self.prompt[node_id] = node(class_type, seed=self.draw(st.integers(0, 2**64 - 10)))
            return node_id
        offered = self.outputs("IMAGE" if class_type == COLLECTOR_CLASS else "")
        least = 1 if class_type == COLLECTOR_CLASS else 0
        links = self.draw(st.lists(st.sampled_from(offered), min_size=least, max_size=1 if least else 3)) if offered else []
        names = ["images"] if class_type == COLLECTOR_CLASS else [f"in{number}" for number in range(3)]
        tag = {} if class_type == COLLECTOR_CLASS else {"tag": node_id}
        self.prompt[node_id] = node(class_type, **tag, **dict(zip(names, links, strict=False)))
        return node_id

    def one_of(self, kind: str, class_type: str) -> Any:
        """An output of this type, of a new node where there is none or chance has it."""
        offered = self.outputs(kind)
        return self.draw(st.sampled_from(offered)) if offered and self.draw(st.booleans()) else out(self.add(class_type))


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """Seeds and pictures, perhaps a collector or two, pictures, an upscale, and nodes behind it of which one saves."""
    drawing = Drawing(draw)
    for class_type in [SEED_CLASS, "Picture", *draw(st.lists(st.sampled_from(BEFORE), max_size=5))]:
        drawing.add(class_type)
    before = dict(drawing.prompt)
    for _ in range(draw(st.integers(0, 2))):
        behind = drawing.prompt
        drawing.prompt = dict(before)  # side by side: neither feeds the other
        collected = drawing.add(COLLECTOR_CLASS)
        drawing.prompt = {**behind, f"c{len(behind)}": drawing.prompt[collected]}
    for class_type in draw(st.lists(st.sampled_from(BETWEEN), max_size=4)):
        drawing.add(class_type)
    collectors = [node_id for node_id in drawing.prompt if drawing.prompt[node_id]["class_type"] == COLLECTOR_CLASS]
    image = drawing.one_of("IMAGE", "Picture")
    if collectors and draw(st.booleans()):
        drawing.prompt["scale"] = node("Picture", tag="scale", in0=out(draw(st.sampled_from(collectors))), in1=image)
        image = out("scale")
    links = {
        "upscaled_image": image, "model": drawing.one_of("MODEL", "Model"),
        "positive": drawing.one_of("CONDITIONING", "Text"), "negative": drawing.one_of("CONDITIONING", "Text"),
        "vae": drawing.one_of("VAE", "Vae"),
    }  # fmt: skip
    seed = drawing.one_of("INT", "Count") if draw(st.booleans()) else draw(st.integers(0, 2**64 - 1))
    drawing.prompt[UP] = node(UPSCALE_CLASS, **links, **WIDGETS, seed=seed)
    for class_type in draw(st.lists(st.sampled_from(BEHIND), max_size=4)):
        drawing.add(class_type)
    drawing.prompt["save"] = node("Save", tag="save", in0=out(UP), in1=draw(st.sampled_from(drawing.outputs())))
    order = draw(st.permutations(list(drawing.prompt)))
    return {node_id: drawing.prompt[node_id] for node_id in order}


class Tile(Machine):
    """A machine with the nodes that hand on what a tile is given."""

    def execute(self, node_id: str, class_type: str, inputs: dict[str, Any]) -> Any:
        if class_type == TILE_INPUTS_CLASS:
            return [inputs.get(name) for name in TILE_INPUT_NAMES]
        if class_type == TILE_REGIONS_CLASS:
            return ["whole", inputs["seed"], inputs["denoise"]]
        if class_type == TILE_PIXELS_CLASS:
            return [inputs["crop"], inputs["region"]]
        if class_type == TILE_IMAGE_CLASS:
            return [inputs["image"]]
        return [inputs["latent"]] if class_type == TILE_LATENT_CLASS else super().execute(node_id, class_type, inputs)


class Upscaling(Machine):
    """A machine in which an upscale makes of its image what one tile would."""

    def execute(self, node_id: str, class_type: str, inputs: dict[str, Any]) -> Any:
        if class_type != UPSCALE_CLASS:
            return super().execute(node_id, class_type, inputs)
        region = {"region": "whole"}
        made = {
            "model": self._make("DistributedTileModel", model=inputs["model"], **region),
            "positive": self._make("DistributedTileConditioning", conditioning=inputs["positive"], **region),
            "negative": self._make("DistributedTileConditioning", conditioning=inputs["negative"], **region),
            "latent_image": self._make("VAEEncode", pixels=inputs["upscaled_image"], vae=inputs["vae"]),
        }
        widgets = {name: inputs[name] for name in (*WIDGETS, "seed")}
        return [self._make("VAEDecode", samples=self._make("KSampler", **made, **widgets), vae=inputs["vae"])]

    def _make(self, class_type: str, **inputs: Any) -> Any:
        return super().execute("", class_type, inputs)[0]


class WholeUpscaling(Whole, Upscaling):
    """The whole prompt, as the user wrote it."""

    def __init__(self, prompt: Prompt, collectors: set[str], items: int) -> None:
        super().__init__(prompt, collectors, items)
        self.branches = [Upscaling(prompt, item=index) for index in range(items)]


class Stages:
    """All stages of a job, run in order."""

    def __init__(self, job: JobPlan) -> None:
        assert job.tiles is not None
        self.job, self.tiles = job, job.tiles  # type: tuple[JobPlan, TileStage]
        self.prepare: Machine | None = None
        self.items = [self._run(job.prompts[item.prompt_hash], item.targets, item.patches) for item in generate_items(job)]
        spec = next((item for item in job.items if item.kind == "prepare"), None)
        self.prepare = self._run(job.prompts[spec.prompt_hash], spec.targets) if spec else None
        self.tile = self._run(job.prompts[self.tiles.prompt_hash], self.tiles.targets)
        self.last = self._run(job.prompts[job.items[-1].prompt_hash], job.items[-1].targets)

    def _run(self, prompt: Prompt, targets: tuple[str, ...], patches: Any = ()) -> Machine:
        machine = Tile(apply_patches(dict(prompt), patches), self._supply)
        for target in targets:
            machine.run(target)
        return machine

    def _supply(self, node_id: str, slot: str) -> Any:
        """As the master feeds a source, from the job's record alone."""
        if node_id == self.tiles.pixels:
            return self.value(self.tiles.image)
        if node_id == self.tiles.node_id:
            return self.tile.results[node_id][slot]
        if node_id in {plan.node_id for plan in self.job.collectors}:
            return self.value(ValuePlace("every", node_id, slot))
        constants = {constant.source_id: constant.place for constant in self.tiles.constants}
        late = node_id in self.tiles.late_edges
        return self.value(constants.get(node_id) or ValuePlace("prepare" if late else "first", node_id, slot))

    def value(self, place: ValuePlace) -> Any:
        """What lies there."""
        if place.item == "every":
            return tuple(item.results[place.node_id][place.slot] for item in self.items)
        holder = self.items[0] if place.item == "first" else self.prepare
        assert holder is not None
        return holder.results[place.node_id][place.slot]


def planned(prompt: Prompt, items: int) -> JobPlan:
    for asked in (items, 1):
        try:
            return plan_job(parsed(prompt), PlanOptions(items=asked), [WORKER])
        except (NothingToVary, UpscaleOfItems):
            continue
        except (PromptHasNoOutput, UpscaleUnused) as error:
            raise AssertionError("the prompt saves its upscale") from error
        except BadInput as error:
            event(type(error).__name__)
            assume(False)
    raise AssertionError("one item can always be asked for")


def behind_collectors(job: JobPlan, prompt: Prompt) -> set[str]:
    return Graph(prompt).downstream(one.node_id for one in job.collectors) - {one.node_id for one in job.collectors}


def prompts_by_kind(job: JobPlan) -> dict[str, tuple[Prompt, set[str]]]:
    """Stage -> its prompt and all targets in it."""
    assert job.tiles is not None
    found: dict[str, tuple[Prompt, set[str]]] = {"tile": (job.prompts[job.tiles.prompt_hash], set(job.tiles.targets))}
    for item in job.items:
        found.setdefault(item.kind, (job.prompts[item.prompt_hash], set()))[1].update(item.targets)
    return found


@given(prompts(), st.integers(1, 3))
def test_the_stages_make_what_the_whole_prompt_makes(prompt: Prompt, items: int) -> None:
    job = planned(prompt, items)
    stages = Stages(job)
    whole = WholeUpscaling(prompt, {one.node_id for one in job.collectors}, len(stages.items))
    event(f"collectors {len(job.collectors)}, prepared {job.has_prepare}, constants {min(len(stages.tiles.constants), 2)}")
    saved = {node_id for node_id, one in prompt.items() if one["class_type"] in OUTPUTS}
    for machine in (stages.items[0], stages.prepare, stages.last):
        for node_id in saved & set(machine.results if machine else ()):
            assert machine and machine.results[node_id] == whole.run(node_id)
    assert stages.tile.results[UP]["images"] == whole.run(UP)[0]


@given(prompts(), st.integers(1, 3))
def test_every_stage_is_closed_and_holds_only_what_its_targets_need(prompt: Prompt, items: int) -> None:
    job = planned(prompt, items)
    found = prompts_by_kind(job)
    assert len(found) == len(job.prompts)
    for stage, targets in found.values():
        links = [link for one in stage.values() for value in one["inputs"].values() if (link := as_link(value))]
        assert all(link.node_id in stage for link in links)
        assert Graph(stage).upstream(targets) == set(stage)
        assert all(one["class_type"] not in (SEED_CLASS, UPSCALE_CLASS) for one in stage.values())
        assert Graph(stage).find_cycle() == ()


@given(prompts(), st.integers(1, 3))
def test_every_output_node_is_the_target_of_one_stage_and_of_the_earliest_that_can_run_it(prompt: Prompt, items: int) -> None:
    job = planned(prompt, items)
    found = {kind: targets for kind, (_, targets) in prompts_by_kind(job).items()}
    outputs = {node_id for node_id, one in prompt.items() if one["class_type"] in OUTPUTS}
    behind, collected = Graph(prompt).downstream([UP]), behind_collectors(job, prompt)
    assert outputs & found["generate"] == outputs - behind - collected
    middle = (outputs & collected) - behind
    assert outputs & found["last"] == (outputs & behind) | (set() if job.has_prepare else middle)
    assert outputs & found.get("prepare", set()) == (middle if job.has_prepare else set())
    assert not outputs & found["tile"]


@given(prompts(), st.integers(1, 3))
def test_the_record_names_every_source_of_every_stage(prompt: Prompt, items: int) -> None:
    job = planned(prompt, items)
    tiles, found = job.tiles, {kind: stage for kind, (stage, _) in prompts_by_kind(job).items()}
    assert tiles is not None

    def sources(kind: str) -> set[str]:
        return {node_id for node_id, one in found.get(kind, {}).items() if one["class_type"] == SOURCE_CLASS}

    consumed = {one.node_id for one in job.collectors if one.consumed}
    assert sources("last") == consumed | set(job.edges) | set(tiles.late_edges) | {UP}
    assert sources("tile") == {constant.source_id for constant in tiles.constants} | {tiles.pixels}
    assert sources("prepare") == ({*tiles.prepare.collectors, *tiles.prepare.edges} if tiles.prepare else set())
    assert not sources("generate")
    places = [tiles.image, *(constant.place for constant in tiles.constants)]
    for place in places:
        if place.item != "every":
            assert place.node_id in found["generate" if place.item == "first" else "prepare"]


@given(prompts(), st.integers(1, 3))
def test_no_tile_makes_a_picture_of_its_own_and_nothing_is_made_twice_that_can_be_handed_on(prompt: Prompt, items: int) -> None:
    job = planned(prompt, items)
    found = {kind: stage for kind, (stage, _) in prompts_by_kind(job).items()}
    for _, link in _user_links(found["tile"], prompt):
        class_type = prompt[link[0]]["class_type"]
        assert class_type == COLLECTOR_CLASS or TYPES[class_type][link[1]] not in TENSORS
        assert class_type not in OUTPUTS
    behind = Graph(prompt).downstream([UP])
    for user, link in _user_links(found["last"], prompt):
        if link[0] in found.get("prepare", {}) and link[0] not in behind and prompt[link[0]]["class_type"] != COLLECTOR_CLASS:
            kind = TYPES[prompt[link[0]]["class_type"]][link[1]]
            made_before = behind_collectors(job, prompt)
            assert link[0] not in made_before or kind not in {*TENSORS, "INT"}, (user, link)


def _user_links(stage: Prompt, prompt: Prompt) -> list[tuple[str, tuple[str, int]]]:
    """Links of a stage to nodes of the user."""
    links = [(user, link) for user, one in stage.items() for value in one["inputs"].values() if (link := as_link(value))]
    return [(user, link) for user, link in links if link.node_id in prompt and link.node_id != UP]
