"""Cuts a prompt at its collectors: what every item runs, what item 0 runs besides, and what runs once afterwards.

An item runs everything upstream of the collectors, with a sink in the place of each.  The last stage runs what lies between the
collectors and the output nodes behind them, with a source in the place of each.  Where the last stage needs a node from before the
cut, that node runs again (its model, its text), unless its value depends on the item and can travel: then item 0 captures it.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed_comfy.errors import CollectorsNested, PromptMalformed
from distributed_comfy.messages import CollectorPlan, Prompt
from distributed_comfy.planning.facts import ClassFacts
from distributed_comfy.planning.stage import Stage, edge_sink, sink
from distributed_comfy.tile_stage import TileStage
from distributed_comfy.workflow.classes import COLLECTOR_CLASS, COLLECTOR_SLOTS, PASS_THROUGH_INPUT, SWITCHED_ON
from distributed_comfy.workflow.graph import Graph, Link, as_link


@dataclass(frozen=True)
class Cut:
    """The prompts of a distributed job and what to run in them."""

    item_prompt: Prompt
    """Runs once per item; item 0's literals stand where items differ."""
    sinks: tuple[str, ...] = ()
    """Targets of every item: one sink in the place of each collector."""
    first_targets: tuple[str, ...] = ()
    """Further targets of item 0: output nodes before the cut, and sinks of crossing edges."""
    last_prompt: Prompt = field(default_factory=dict)
    """Runs once, after all items; empty where no output node lies behind a collector."""
    last_targets: tuple[str, ...] = ()
    collectors: tuple[CollectorPlan, ...] = ()
    edges: tuple[str, ...] = ()
    """Sink ids of the crossing edges that item 0 captures."""
    warnings: tuple[str, ...] = ()
    prepare_prompt: Prompt = field(default_factory=dict)
    """Runs once, after all items and before the tiles of an upscale; empty where no node lies between."""
    prepare_targets: tuple[str, ...] = ()
    tile_prompt: Prompt = field(default_factory=dict)
    """Runs once for each tile of an upscale."""
    tiles: TileStage | None = None


def find_collectors(graph: Graph) -> tuple[str, ...]:
    """Ids of the collectors at which to cut, without those that pass through.

    Raises:
        CollectorsNested: one of them feeds another.
    """
    collectors = [node_id for node_id in graph.of_class(COLLECTOR_CLASS) if not passes_through(graph.prompt[node_id]["inputs"])]
    for outer in collectors:
        feeding = graph.upstream([outer])
        for inner in collectors:
            if inner in feeding and inner != outer:
                raise CollectorsNested(inner=inner, outer=outer)
    return tuple(collectors)


def passes_through(inputs: dict[str, Any]) -> bool:
    """True for a collector that is set to collect nothing."""
    return inputs.get(PASS_THROUGH_INPUT) in SWITCHED_ON


def wired_slots(inputs: dict[str, Any]) -> tuple[str, ...]:
    """The slots of a collector that something feeds."""
    return tuple(slot for slot in COLLECTOR_SLOTS if as_link(inputs.get(slot)))


def cut_prompt(prompt: Prompt, collectors: Sequence[str], varying: Collection[str], facts: ClassFacts) -> Cut:
    """Cut a prompt whose seeds are literals already.

    Args:
        prompt: without nodes that feed neither an output node nor a collector.
        collectors: ids from `find_collectors`, each with a wired slot.
        varying: nodes whose values differ from item to item.
        facts: about the node classes.

    Raises:
        PromptMalformed: something is linked to an output that a collector does not have, or a node has an id that is used here.
    """
    graph = Graph(prompt)
    check_collector_links(graph, collectors)
    behind = graph.downstream(collectors).difference(collectors)
    outputs = [node_id for node_id in prompt if facts.is_output(graph.class_of(node_id))]
    crossing = Crossing(graph, frozenset([*collectors, *behind]), varying, facts)
    last = Stage(graph, facts, "the last stage", slots_of(graph, collectors), crossing.takes)
    last_targets = tuple(node_id for node_id in outputs if node_id in behind)
    last.add(last_targets)
    first_targets = (*(node_id for node_id in outputs if node_id not in behind), *last.edges)
    return Cut(
        item_prompt=item_prompt(graph, collectors, last.edges, first_targets),
        sinks=tuple(collectors),
        first_targets=first_targets,
        last_prompt=last.nodes,
        last_targets=last_targets,
        collectors=tuple(collector_plan(graph, node_id, last.nodes, facts) for node_id in collectors),
        edges=tuple(last.edges),
        warnings=tuple(last.warnings),
    )


def check_collector_links(graph: Graph, collectors: Sequence[str]) -> None:
    """
    Raises:
        PromptMalformed: something is linked to an output that a collector does not have.
    """
    for collector in collectors:
        for node_id, name, slot in graph.consumers[collector]:
            if slot >= len(COLLECTOR_SLOTS):
                reason = f"input {name} of node {node_id} is linked to output {slot} of collector {collector}, which has fewer"
                raise PromptMalformed(source="the prompt", reason=reason)


def item_prompt(graph: Graph, collectors: Sequence[str], edges: Mapping[str, Link], first_targets: Sequence[str]) -> Prompt:
    """What items run: a sink in the place of each collector, and on each edge of ``edges``."""
    wired = slots_of(graph, collectors)
    sinks = {node_id: sink({slot: graph.prompt[node_id]["inputs"][slot] for slot in slots}) for node_id, slots in wired.items()}
    sinks |= {sink_id: edge_sink(link) for sink_id, link in edges.items()}
    return Graph({**graph.prompt, **sinks}).prune([*collectors, *first_targets])


def slots_of(graph: Graph, collectors: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Collector -> its wired slots."""
    return {node_id: wired_slots(graph.prompt[node_id]["inputs"]) for node_id in collectors}


def collector_plan(
    graph: Graph, collector: str, last_nodes: Prompt, facts: ClassFacts, *, other_nodes: Prompt | None = None
) -> CollectorPlan:
    """What the master must know about a collector.

    Args:
        graph: the prompt before the cut.
        last_nodes: what the last stage runs.
        other_nodes: what else runs behind collectors.
    """
    slots, nodes = wired_slots(graph.prompt[collector]["inputs"]), {**(other_nodes or {}), **last_nodes}
    unsaved = tuple(slot for slot in slots if not _is_saved(graph, Link(collector, COLLECTOR_SLOTS.index(slot)), nodes, facts))
    return CollectorPlan(collector, slots, collector in last_nodes, unsaved)


def _is_saved(graph: Graph, output: Link, nodes: Prompt, facts: ClassFacts) -> bool:
    """Whether an output node among ``nodes`` takes this output of a collector, or what another node made of it, in a form it saves."""
    carrying = graph.downstream([user for user, _, slot in graph.consumers[output.node_id] if slot == output.slot])
    taken = (
        (graph.class_of(node_id), facts.output_type(graph.class_of(link.node_id), link.slot))
        for node_id in nodes
        for link in graph.links.get(node_id, {}).values()
        if link == output or link.node_id in carrying
    )
    latents = COLLECTOR_SLOTS[output.slot] == "latents"
    return any(facts.saves(class_type, kind, latents=latents) for class_type, kind in taken)


@dataclass(frozen=True)
class Crossing:
    """Which values from before a cut are taken from item 0; all others are made again behind it."""

    graph: Graph
    inside: Collection[str]
    """The collectors and what they feed."""
    varying: Collection[str]
    facts: ClassFacts

    def takes(self, link: Link) -> bool:
        """True for what depends on the item, or comes from an output node, and can travel."""
        if link.node_id in self.inside:
            return False
        class_type = self.graph.class_of(link.node_id)
        kept_apart = link.node_id in self.varying or self.facts.is_output(class_type)
        return kept_apart and self.facts.can_travel(class_type, link.slot)
