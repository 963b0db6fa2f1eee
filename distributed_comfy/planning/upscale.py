"""Cuts a prompt at an upscale: what makes the image, what every tile runs, and what follows the upscaled image.

A job with an upscale runs up to four stages.  Items, as in `cut`, up to the collectors that lie before the upscale (without such a
collector one item runs everything up to the upscale).  Then, only where nodes lie between those collectors and the upscale, one item
that prepares the image.  Then tiles, which the master adds when it knows how large the image is.  Then the last stage.
"""
from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from distributed_comfy.errors import PromptMalformed, SeveralUpscales, UpscalesNested, UpscaleUnused
from distributed_comfy.messages import CollectorPlan, Prompt, content_hash
from distributed_comfy.planning.cut import (
    Crossing,
    Cut,
    check_collector_links,
    collector_plan,
    item_prompt,
    passes_through,
    slots_of,
)
from distributed_comfy.planning.facts import ClassFacts
from distributed_comfy.planning.stage import Stage, free_edge_id, source
from distributed_comfy.planning.tile_prompt import TileNodes, tile_nodes
from distributed_comfy.planning.upscale_inputs import IMAGE_INPUT, SAMPLING, UpscaleInputs, read_upscale
from distributed_comfy.tile_stage import PrepareStage, TileConstant, TileStage, ValuePlace
from distributed_comfy.workflow.classes import COLLECTOR_CLASS, COLLECTOR_SLOTS, EDGE_SLOT, PASS_THROUGH_INPUT, UPSCALE_CLASS, edge_id
from distributed_comfy.workflow.graph import Graph, Link, as_link


@dataclass(frozen=True)
class FoundUpscale:
    """The upscale at which to cut, and the prompt without collectors behind it."""

    node_id: str
    """Empty where there is none."""
    prompt: Prompt
    opened: tuple[str, ...] = ()
    """Collectors that pass through because they lie behind it."""
    warnings: tuple[str, ...] = ()


def find_upscale(graph: Graph, outputs: Sequence[str]) -> FoundUpscale:
    """The upscale of a prompt; collectors behind it are set to pass through.

    Raises:
        UpscaleUnused: its result goes somewhere, but not to an output node.
        UpscalesNested, SeveralUpscales: there are two.
    """
    used, warnings = [], []
    for node_id in graph.of_class(UPSCALE_CLASS):
        if not graph.downstream([node_id]).isdisjoint(outputs):
            used.append(node_id)
        elif graph.consumers[node_id]:
            raise UpscaleUnused(node_id=node_id)
        else:
            warnings.append(f"upscale {node_id} is linked to nothing and is left out")
    _check_one(graph, used)
    if not used:
        return FoundUpscale("", graph.prompt, warnings=tuple(warnings))
    behind = graph.downstream(used)
    opened = [one for one in graph.of_class(COLLECTOR_CLASS) if one in behind and not passes_through(graph.prompt[one]["inputs"])]
    warnings += [f"collector {one} lies behind upscale {used[0]} and passes its images through" for one in opened]
    changed = {one: {**graph.prompt[one], "inputs": {**graph.prompt[one]["inputs"], PASS_THROUGH_INPUT: True}} for one in opened}
    return FoundUpscale(used[0], {**graph.prompt, **changed}, tuple(opened), tuple(warnings))


def _check_one(graph: Graph, upscales: Sequence[str]) -> None:
    for outer in upscales:
        inner = sorted(graph.upstream([outer]) & set(upscales) - {outer})
        if inner:
            raise UpscalesNested(inner=inner[0], outer=outer)
    if len(upscales) > 1:
        raise SeveralUpscales(first=upscales[0], second=upscales[1])


def cut_at_upscale(prompt: Prompt, upscale: str, collectors: Sequence[str], varying: Collection[str], facts: ClassFacts) -> Cut:
    """Cut a prompt whose seeds are literals already.

    Args:
        prompt: without nodes that feed neither an output node nor a collector.
        upscale: from `find_upscale`.
        collectors: those that do not lie behind it, each with a wired slot.
        varying: nodes whose values differ from item to item.
        facts: about the node classes.

    Raises:
        UpscaleInputWrong: an input with which it cannot be planned.
        PromptMalformed: something is linked to an output that a collector or the upscale does not have, or a node has an id that is
            used here.
    """
    graph = Graph(prompt)
    check_collector_links(graph, collectors)
    _check_upscale_links(graph, upscale)
    return _UpscaleCut(graph, upscale, tuple(collectors), varying, facts).cut()


def _check_upscale_links(graph: Graph, upscale: str) -> None:
    for node_id, name, slot in graph.consumers[upscale]:
        if slot:
            reason = f"input {name} of node {node_id} is linked to output {slot} of upscale {upscale}, which has one"
            raise PromptMalformed(source="the prompt", reason=reason)


class _UpscaleCut:
    """The stages of one cut, each grown from what those after it need of it."""

    def __init__(self, graph: Graph, upscale: str, collectors: tuple[str, ...], varying: Collection[str], facts: ClassFacts) -> None:
        self.graph, self.upscale, self.collectors, self.varying, self.facts = graph, upscale, collectors, varying, facts
        self.inputs: UpscaleInputs = read_upscale(graph, upscale, facts)
        self.behind_collectors = graph.downstream(collectors).difference(collectors)
        self.behind = graph.downstream([upscale]) - {upscale}
        self.outputs = [node_id for node_id in graph.prompt if facts.is_output(graph.class_of(node_id))]
        self._crossing = Crossing(graph, {*collectors, *self.behind_collectors}, varying, facts)
        self.tile = self._tile_stage()
        self.prepare = Stage(graph, facts, "the stage that prepares the upscale", slots_of(graph, collectors), self._crossing.takes)
        self.last = Stage(
            graph, facts, "the last stage", {**slots_of(graph, collectors), upscale: ("images",)}, self._is_taken_by_last
        )

    @property
    def image(self) -> Link:
        """The image to upscale."""
        return self.inputs.links[IMAGE_INPUT]

    @cached_property
    def handed(self) -> dict[str, Link]:
        """Sink id -> output, for image and constants, wherever they are made."""
        image = {} if self.image.node_id in self.collectors else {free_edge_id(self.graph, self.image): self.image}
        return {**image, **self.tile.edges}

    @cached_property
    def between(self) -> dict[str, Link]:
        """Those of `handed` that are made behind collectors."""
        return {sink_id: link for sink_id, link in self.handed.items() if link.node_id in self.behind_collectors}

    def cut(self) -> Cut:
        """All stages, and what ties them together."""
        middle = [node_id for node_id in self.outputs if node_id in self.behind_collectors - self.behind]
        prepared = middle if self.between else []
        self.prepare.add(prepared)
        prepare_targets = [*prepared, *(self.prepare.add_sink(link) for link in self.between.values())]
        last_targets = (*(node_id for node_id in self.outputs if node_id in self.behind), *(middle if not prepared else ()))
        self.last.add(last_targets)
        late = {sink_id: link for sink_id, link in self.last.edges.items() if link.node_id in self.behind_collectors}
        prepare_targets += [self.prepare.add_sink(link) for sink_id, link in late.items() if sink_id not in self.between]
        first_edges = {
            **{sink_id: link for sink_id, link in self.handed.items() if sink_id not in self.between},
            **self.prepare.edges,
            **{sink_id: link for sink_id, link in self.last.edges.items() if sink_id not in late},
        }
        first_targets = (*self._first_outputs(), *first_edges)
        return Cut(
            item_prompt=item_prompt(self.graph, self.collectors, first_edges, first_targets),
            sinks=self.collectors,
            first_targets=first_targets,
            last_prompt=self.last.nodes,
            last_targets=last_targets,
            collectors=self._collector_plans(),
            edges=tuple(sink_id for sink_id in self.last.edges if sink_id not in late),
            warnings=(*self._warnings(), *self.tile.warnings, *self.prepare.warnings, *self.last.warnings),
            prepare_prompt=self.prepare.nodes,
            prepare_targets=tuple(prepare_targets),
            tile_prompt=self.tile.nodes,
            tiles=replace(self._tiles(), late_edges=tuple(late)),
        )

    def _first_outputs(self) -> list[str]:
        return [node_id for node_id in self.outputs if node_id not in self.behind | self.behind_collectors]

    def _warnings(self) -> list[str]:
        beside = self.collectors and self.image.node_id not in {*self.collectors, *self.behind_collectors}
        if not (beside and self.image.node_id in self.varying):
            return []
        return [f"upscale {self.upscale} does not lie behind collector {self.collectors[0]}: it takes item 0's image alone"]

    def _collector_plans(self) -> tuple[CollectorPlan, ...]:
        plans = (collector_plan(self.graph, one, self.last.nodes, self.facts, other_nodes=self.prepare.nodes) for one in self.collectors)
        return tuple(plans)

    # -- what is handed from stage to stage
    def _is_constant(self, link: Link) -> bool:
        """Whether tiles take this value from an earlier stage: all that is dear to make, or could differ from worker to worker."""
        if link.node_id in self.collectors or link.node_id not in self.graph.prompt:
            return False
        class_type = self.graph.class_of(link.node_id)
        if not self.facts.can_travel(class_type, link.slot):
            return False
        apart = link.node_id in self.varying or self.facts.is_output(class_type)
        return apart or link in self._sampling_links or self._holds_tensors(link)

    @cached_property
    def _sampling_links(self) -> set[Link]:
        return {link for name in SAMPLING if (link := as_link(self.inputs.sampling[name]))}

    def _holds_tensors(self, link: Link) -> bool:
        """True for images and the like, and for what is made of them, such as a number or a caption."""
        feeding = (link, *(fed for node_id in self.graph.upstream([link.node_id]) for fed in self.graph.links[node_id].values()))
        return any(one.node_id in self.collectors or self.facts.is_tensor(self.graph.class_of(one.node_id), one.slot) for one in feeding)

    def _is_taken_by_last(self, link: Link) -> bool:
        """Whether an earlier stage makes this value in any case."""
        if link.node_id in (self.upscale, *self.collectors) or link.node_id in self.behind:
            return False
        if self.handed.get(edge_id(*link)) == link:
            return True
        if link.node_id in self.behind_collectors:
            return link.node_id in self.prepare.nodes and self.facts.can_travel(self.graph.class_of(link.node_id), link.slot)
        return self._crossing.takes(link) or (link.node_id in self._run_once and self._is_dear(link))

    @cached_property
    def _run_once(self) -> set[str]:
        """What the one item of a job without collectors runs."""
        if self.collectors:
            return set()
        return self.graph.upstream([*self._first_outputs(), *(link.node_id for link in self.handed.values())])

    def _is_dear(self, link: Link) -> bool:
        """True for what is made of other values, and can travel; what a loader gives is loaded again, but for sound: it is small, and
        the video that it comes from is not."""
        class_type = self.graph.class_of(link.node_id)
        made = bool(self.graph.links[link.node_id]) or self.facts.output_type(class_type, link.slot) == "AUDIO"
        return made and self.facts.can_travel(class_type, link.slot) and self._holds_tensors(link)

    # -- tiles
    def _tile_stage(self) -> Stage:
        graph = Graph({**self.graph.prompt, **tile_nodes(self.graph.prompt, self.upscale, self.inputs)})
        stage = Stage(graph, self.facts, "every tile", slots_of(graph, self.collectors), self._is_constant)
        stage.add([self.upscale])
        for collector in set(self.collectors) & set(stage.nodes):
            stage.nodes[collector] = source(_asked_slots(stage, collector))
        return stage

    def _tiles(self) -> TileStage:
        ids = TileNodes(self.upscale)
        collected = [one for one in self.collectors if one in self.tile.nodes]
        constants = [TileConstant(sink_id, self._place(link)) for sink_id, link in self.tile.edges.items()]
        constants += [TileConstant(one, ValuePlace("every", one, slot)) for one in collected for slot in _asked_slots(self.tile, one)]
        fed = tuple(one for one in self.collectors if one in self.prepare.nodes)
        return TileStage(
            node_id=self.upscale,
            image=self._place(self.image),
            prompt_hash=content_hash(self.tile.nodes),
            targets=(self.upscale,),
            pixels=ids.pixels,
            regions=ids.regions,
            seed=self.inputs.seed,
            geometry=self.inputs.geometry,
            constants=tuple(constants),
            prepare=PrepareStage(fed, tuple(self.prepare.edges)) if self.between else None,
            deterministic=self.inputs.deterministic,
        )

    def _place(self, link: Link) -> ValuePlace:
        if link.node_id in self.collectors:
            return ValuePlace("every", link.node_id, COLLECTOR_SLOTS[link.slot])
        return ValuePlace("prepare" if link.node_id in self.behind_collectors else "first", edge_id(*link), EDGE_SLOT)


def _asked_slots(stage: Stage, collector: str) -> tuple[str, ...]:
    """Those wired slots of a collector that nodes of the stage use."""
    used = {link.slot for node_id in stage.nodes for link in _links(stage.nodes[node_id]) if link.node_id == collector}
    return tuple(slot for slot in stage.stand_ins[collector] if COLLECTOR_SLOTS.index(slot) in used)


def _links(node: dict[str, Any]) -> Iterator[Link]:
    return (link for value in node["inputs"].values() if (link := as_link(value)))
