"""Turns one prompt into the items of a job: how many, what each runs, what workers need for it."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from distributed_comfy.errors import ItemsOutOfRange, NothingToVary, PromptHasNoOutput, PromptMalformed, UpscaleOfItems
from distributed_comfy.messages import (
    Capability,
    CollectorPlan,
    ItemKind,
    ItemSpec,
    OnMissing,
    Patch,
    Prompt,
    Requirement,
    content_hash,
    to_plain,
)
from distributed_comfy.planning.collector_inputs import items_input, load_balance_input, on_missing_input, save_prefix_input
from distributed_comfy.planning.cut import Cut, cut_prompt, find_collectors, wired_slots
from distributed_comfy.planning.eight_bit import eight_bit_nodes
from distributed_comfy.planning.facts import ClassFacts
from distributed_comfy.planning.files import FileReference, find_files
from distributed_comfy.planning.requirements import requirement_of, services_of, united
from distributed_comfy.planning.seeds import Seeds, find_seeds, with_seed
from distributed_comfy.planning.upscale import cut_at_upscale, find_upscale
from distributed_comfy.planning.values import Values, find_values
from distributed_comfy.tile_stage import TileStage
from distributed_comfy.workflow.classes import (
    COLLECTOR_CLASS,
    COLLECTOR_SLOTS,
    LEGACY_CLASSES,
    LEGACY_INPUTS,
    SEED_CLASS,
    VALUE_CLASS,
)
from distributed_comfy.workflow.graph import Graph
from distributed_comfy.workflow.parse import ParsedPrompt

ITEMS_LIMIT = 10_000
"""Most items of one job, the last stage not counted."""
_NEEDED_BEFORE = f"{SEED_CLASS} that feeds a {COLLECTOR_CLASS} before the upscale"
_NOTHING_WIRED = f"has none of {', '.join(COLLECTOR_SLOTS)}"


@dataclass(frozen=True)
class PlanOptions:
    """What the submitter asks for."""

    items: int | None = None
    """Seeds to run; None: the collector's ``items`` input, else ``participants``."""
    seed: int | None = None
    """Item 0's seed, for every DistributedSeed; None: as in the prompt."""
    engine: str = ""
    """``comfyui``, ``builtin``, ``attach`` or empty for any."""
    tags: tuple[str, ...] = ()
    """Tags that a worker must carry."""
    participants: int = 1
    """Workers that take part by default, plus the master if it does."""
    on_missing: OnMissing | None = None
    """What every collector makes of items that fail for good; None: as in the prompt."""
    outer_outputs: tuple[str, ...] | None = None
    """Output nodes of a prompt that runs in a ComfyUI, which takes from the job what collectors and the upscale give, and runs all else
    itself: the job has then no last stage, and of the output nodes only those that items need.  None: the job runs them."""
    outputs: tuple[str, ...] | None = None
    """The output nodes to run; None: every one of the prompt."""


@dataclass(frozen=True)
class JobPlan:
    """All that is known about a job before it is queued."""

    original_prompt: Prompt
    """The user's prompt, for image metadata; it holds the seed that was asked for."""
    prompts: Mapping[str, Prompt]
    """Stage prompts by `content_hash`."""
    items: tuple[ItemSpec, ...]
    """Items in order: generated ones, the one that prepares an upscale, the last stage; each of these two only where there is one."""
    collectors: tuple[CollectorPlan, ...]
    edges: tuple[str, ...]
    """Sink ids of the edges that item 0 captures for the last stage."""
    requirement: Requirement
    """What a worker needs for any item but the last stage; for tiles too."""
    last_requirement: Requirement | None
    """What a worker needs for the last stage; None where there is none."""
    input_files: tuple[FileReference, ...]
    """Files that nodes of any stage load."""
    warnings: tuple[str, ...] = ()
    """Sentences for the user about what was decided for them."""
    tiles: TileStage | None = None
    """The upscale of the job; the master adds its tiles when it knows how large the image is, see `tile_prompt.tile_specs`."""
    eight_bit: tuple[str, ...] = ()
    """Collectors, and the upscale, of whose images nothing but 8 bits is used, see `eight_bit`.  None in a ComfyUI that runs the prompt:
    what follows them is not in the job, and its cache hands the images to nodes of later prompts too."""

    @property
    def original_prompt_hash(self) -> str:
        """`content_hash` of the user's prompt."""
        return content_hash(self.original_prompt)

    @property
    def has_last_stage(self) -> bool:
        """True where the last of `items` runs what follows the collectors."""
        return self.last_requirement is not None

    @property
    def has_prepare(self) -> bool:
        """True where an item makes the image to upscale."""
        return self.tiles is not None and self.tiles.prepare is not None


@dataclass(frozen=True)
class _Stages:
    """A cut prompt, or a whole one in the same shape."""

    cut: Cut
    seeds: Seeds
    values: Values
    repeated: tuple[str, ...]
    """Targets of every item."""
    warnings: list[str] = field(default_factory=list)
    opened: tuple[str, ...] = ()
    """Collectors behind an upscale; they collect nothing."""
    eight_bit: tuple[str, ...] = ()
    """As `JobPlan.eight_bit`."""

    @property
    def varying(self) -> frozenset[str]:
        """Nodes whose values differ from item to item."""
        return self.seeds.varying | self.values.varying


def plan_job(parsed: ParsedPrompt, options: PlanOptions, capabilities: Sequence[Capability]) -> JobPlan:
    """Plan a job from a checked prompt.

    A prompt with collectors becomes N items and, where an output node follows one, a last stage.  A prompt with a DistributedSeed (or
    a DistributedValue) and no collector is one item; asked for more, each runs the output nodes that see it.  Any other is one item.
    A prompt with an upscale is cut there as well, see `upscale`.

    Args:
        parsed: from `parse_prompt`.
        options: what the submitter asks for.
        capabilities: of the workers known now; a node class that none of them knows is judged by well-known names.

    Raises:
        PromptHasCycle, PromptHasNoOutput, CollectorsNested, PromptMalformed: the prompt cannot be planned.
        UpscalesNested, SeveralUpscales, UpscaleUnused, UpscaleInputWrong, UpscaleOfItems: its upscale cannot be planned.
        NothingToVary: items, a seed or ``on_missing`` were asked for, and no node takes them.
        ItemsOutOfRange, SeedOutOfRange, SeedNotLiteral, ValueNotLiteral: the batch cannot be numbered.
    """
    original = parsed.prompt if options.seed is None else with_seed(parsed.prompt, options.seed)
    facts = ClassFacts(capabilities, options.engine)
    stages = _stages(original, facts, options)
    if options.seed is not None and not stages.seeds.uses:
        raise NothingToVary(option="--seed", needed=SEED_CLASS)
    count = _item_count(original, options, stages)
    stages.seeds.check_range(count)
    return _assemble(original, stages, count, options, facts)


def _stages(original: Prompt, facts: ClassFacts, options: PlanOptions) -> _Stages:
    whole = Graph(_without_legacy_inputs(original))
    whole.order()
    outputs: Sequence[str] = [node_id for node_id in whole.prompt if facts.is_output(whole.class_of(node_id))]
    if options.outputs is not None:
        outputs = [node_id for node_id in whole.prompt if node_id in options.outputs]
    if options.outer_outputs is not None:
        outputs, whole = options.outer_outputs, Graph(whole.prune(options.outer_outputs))
    upscale = find_upscale(whole, outputs)
    whole = Graph(upscale.prompt)
    collectors, warnings = _usable_collectors(whole, outputs)
    if not outputs and not collectors:
        raise PromptHasNoOutput()
    wanted = [*outputs, *collectors]
    if options.outer_outputs is not None and (collectors or upscale.node_id):
        wanted = [*collectors, *([upscale.node_id] if upscale.node_id else [])]
    graph = Graph(whole.prune(wanted))
    seeds, values = find_seeds(graph, facts), find_values(graph)
    prompt = values.replace_nodes(seeds.replace_nodes(graph.prompt))
    varying = seeds.varying | values.varying
    warnings = [*upscale.warnings, *warnings, *values.warnings]
    if upscale.node_id:
        cut = cut_at_upscale(prompt, upscale.node_id, collectors, varying, facts)
    elif collectors:
        cut = cut_prompt(prompt, collectors, varying, facts)
    else:
        repeated = tuple(node_id for node_id in outputs if node_id in varying)
        rest = tuple(node_id for node_id in outputs if node_id not in varying)
        return _Stages(Cut(Graph(prompt).prune(outputs), first_targets=rest), seeds, values, repeated, warnings)
    few_bits = () if options.outer_outputs is not None else eight_bit_nodes(graph, collectors, upscale.node_id)
    return _Stages(cut, seeds, values, cut.sinks, [*warnings, *cut.warnings], upscale.opened, few_bits)


def _without_legacy_inputs(prompt: Prompt) -> Prompt:
    return {
        node_id: {**node, "inputs": {name: value for name, value in node["inputs"].items() if name not in LEGACY_INPUTS}}
        if node["class_type"] in LEGACY_CLASSES
        else node
        for node_id, node in prompt.items()
    }


def _usable_collectors(graph: Graph, outputs: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The collectors to cut at, without loose ones that nothing feeds and nothing uses; and what to say about those."""
    usable, warnings = [], []
    for node_id in find_collectors(graph):
        if wired_slots(graph.prompt[node_id]["inputs"]):
            usable.append(node_id)
        elif graph.downstream([node_id]).isdisjoint(outputs):
            warnings.append(f"collector {node_id} {_NOTHING_WIRED} and is left out")
        else:
            raise PromptMalformed(source="the prompt", reason=f"collector {node_id} {_NOTHING_WIRED}")
    return tuple(usable), warnings


def _item_count(original: Prompt, options: PlanOptions, stages: _Stages) -> int:
    """How many seeds to run.

    ``--items`` wins; then ``load_balance`` (one), the largest ``items`` of the collectors, and the participants.  Without anything
    that differs between items, more than one is an error where it was asked for, and one where it would only be the default.
    """
    collectors = [node_id for node_id in stages.repeated if original[node_id]["class_type"] == COLLECTOR_CLASS]
    if stages.cut.tiles and not collectors:
        return _check_one_item(original, options, stages, stages.cut.tiles.node_id)
    varies = not stages.varying.isdisjoint(stages.repeated)
    needed = f"{SEED_CLASS} (or {VALUE_CLASS} with worker_values)" + " that feeds the collector" * bool(collectors)
    if options.items is not None:
        return _checked_count(options.items, "--items", varies, needed)
    if not collectors or any(load_balance_input(original, node_id) for node_id in collectors):
        return 1
    asked = {node_id: items_input(original, node_id, stages.warnings) for node_id in collectors}
    largest = max(asked, key=lambda node_id: asked[node_id])
    if asked[largest]:
        return _checked_count(asked[largest], f"items={asked[largest]} on collector {largest}", varies, needed)
    if options.participants > 1 and not varies:
        stages.warnings.append(f"no {needed}: all items would be the same, so only one runs")
        return 1
    return min(max(options.participants, 1), ITEMS_LIMIT)


def _check_one_item(original: Prompt, options: PlanOptions, stages: _Stages, upscale: str) -> int:
    """One item makes the image of an upscale; refuses a request for more, unless it is moot because nothing would differ."""
    varies = upscale in stages.varying
    asked = {one: items_input(original, one, stages.warnings) for one in stages.opened}
    several = [f"items={items} on collector {one}" for one, items in asked.items() if items > 1 and varies]
    if options.items is not None:
        several = [f"--items {options.items}"] * (options.items > 1)
        _checked_count(options.items, "--items", varies, _NEEDED_BEFORE)
    if several:
        raise UpscaleOfItems(option=several[0], node_id=upscale)
    return 1


def _checked_count(items: int, option: str, varies: bool, needed: str) -> int:
    if not 1 <= items <= ITEMS_LIMIT:
        raise ItemsOutOfRange(items=items, limit=ITEMS_LIMIT)
    if items > 1 and not varies:
        raise NothingToVary(option=option, needed=needed)
    return items


def _collector_plans(original: Prompt, cut: Cut, asked: OnMissing | None, warnings: list[str]) -> tuple[CollectorPlan, ...]:
    if asked and not cut.collectors:
        raise NothingToVary(option="--on-missing", needed=COLLECTOR_CLASS)
    return tuple(
        replace(
            plan,
            on_missing=asked or on_missing_input(original, plan.node_id),
            save_prefix=save_prefix_input(original, plan.node_id, warnings),
        )
        for plan in cut.collectors
    )


def _assemble(original: Prompt, stages: _Stages, count: int, options: PlanOptions, facts: ClassFacts) -> JobPlan:
    cut = stages.cut
    own = stages.values.all_patches(count, cut.item_prompt)

    def needs(prompt: Prompt, patches: Sequence[Patch] = ()) -> Requirement:
        requirement = requirement_of(prompt, facts, patches=patches, engine=options.engine, tags=options.tags)
        return replace(requirement, services=services_of(prompt, original, facts))

    early = [needs(prompt) for prompt in (cut.prepare_prompt, cut.tile_prompt) if prompt]
    stage_prompts = [prompt for prompt in (cut.item_prompt, cut.prepare_prompt, cut.tile_prompt, cut.last_prompt) if prompt]
    return JobPlan(
        original_prompt=original,
        prompts={content_hash(prompt): prompt for prompt in stage_prompts},
        items=(*_item_specs(stages, count), *_later_specs(stages, count)),
        collectors=_collector_plans(original, cut, options.on_missing, stages.warnings),
        edges=cut.edges,
        requirement=united([needs(cut.item_prompt, own), *early]),
        last_requirement=needs(cut.last_prompt) if cut.last_targets else None,
        input_files=_files(stage_prompts, facts, own),
        warnings=tuple(stages.warnings),
        tiles=cut.tiles,
        eight_bit=stages.eight_bit,
    )


def _later_specs(stages: _Stages, count: int) -> Iterator[ItemSpec]:
    """What runs once, after the generated items."""
    cut = stages.cut
    stages_left: list[tuple[ItemKind, Prompt, tuple[str, ...]]] = [
        ("prepare", cut.prepare_prompt, cut.prepare_targets), ("last", cut.last_prompt, cut.last_targets)
    ]  # fmt: skip
    for index, (kind, prompt, targets) in enumerate((left for left in stages_left if left[2]), count):
        yield ItemSpec(index, kind, content_hash(prompt), targets, seed=stages.seeds.label(0))


def _files(prompts: Sequence[Prompt], facts: ClassFacts, patches: Sequence[Patch]) -> tuple[FileReference, ...]:
    """The files of all stages, each once; ``patches`` are those of items."""
    found = [file for prompt in prompts[1:] for file in find_files(prompt, facts)]
    return tuple(dict.fromkeys([*find_files(prompts[0], facts, patches), *found]))


def _item_specs(stages: _Stages, count: int) -> list[ItemSpec]:
    prompt, seeds, values = stages.cut.item_prompt, stages.seeds, stages.values
    stage_hash = content_hash(prompt)
    varied = seeds.uses or stages.values.varying
    kind: ItemKind = "generate" if stages.cut.sinks or stages.cut.tiles or varied else "whole"
    first = (*stages.repeated, *stages.cut.first_targets)
    return [
        ItemSpec(
            index=index,
            kind=kind,
            prompt_hash=stage_hash,
            targets=stages.repeated if index else first,
            patches=seeds.patches(index, prompt) + values.patches(index, prompt),
            seed=seeds.label(index),
        )
        for index in range(count)
    ]


def resume_key(plan: JobPlan, *, input_hashes: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """Equal for jobs whose results are interchangeable: 32 hexadecimal digits.

    Args:
        plan: the job.
        input_hashes: name of each input file -> sha256 of its content.
        versions: whatever else decides the pixels, such as ``{"comfyui": "0.3.64", "pack": "1.2"}``.
    """
    return content_hash(
        {
            "prompts": sorted(plan.prompts),
            "original": plan.original_prompt_hash,
            "items": [to_plain(item) for item in plan.items],
            "inputs": dict(input_hashes),
            "versions": dict(versions),
            **({"tiles": to_plain(plan.tiles)} if plan.tiles else {}),
        }
    )
