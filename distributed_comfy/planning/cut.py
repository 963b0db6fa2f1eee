"""Cuts a prompt at its collectors: what every item runs, what item 0 runs besides, and what runs once afterwards.

An item runs everything upstream of the collectors, with a sink in the place of each.  The last stage runs what lies between the
collectors and the output nodes behind them, with a source in the place of each.  Where the last stage needs a node from before the
cut, that node runs again (its model, its text), unless its value depends on the item and can travel: then item 0 captures it.
"""
from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed_comfy.errors import CollectorsNested, PromptMalformed
from distributed_comfy.messages import CollectorPlan, Prompt
from distributed_comfy.planning.facts import ClassFacts
from distributed_comfy.workflow.classes import (
    CLAIM_INPUT,
    COLLECTOR_CLASS,
    COLLECTOR_SLOTS,
    EDGE_SLOT,
    PASS_THROUGH_INPUT,
    SINK_CLASS,
    SLOTS_INPUT,
    SOURCE_CLASS,
    SWITCHED_ON,
    edge_id,
)
from distributed_comfy.workflow.graph import Graph, Link, as_link


@dataclass(frozen=True)
class Cut:
    """The two prompts of a distributed job and what to run in them."""

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
    _check_collector_links(graph, collectors)
    behind = graph.downstream(collectors).difference(collectors)
    outputs = [node_id for node_id in prompt if facts.is_output(graph.class_of(node_id))]
    last = _LastStage(graph, frozenset(collectors), behind, varying, facts)
    last_targets = tuple(node_id for node_id in outputs if node_id in behind)
    last.add(last_targets)
    first_targets = (*(node_id for node_id in outputs if node_id not in behind), *last.edges)
    return Cut(
        item_prompt=_item_prompt(graph, collectors, last.edges, first_targets),
        sinks=tuple(collectors),
        first_targets=first_targets,
        last_prompt=last.nodes,
        last_targets=last_targets,
        collectors=tuple(_collector_plan(graph, node_id, last, facts) for node_id in collectors),
        edges=tuple(last.edges),
        warnings=tuple(last.warnings),
    )


def _check_collector_links(graph: Graph, collectors: Sequence[str]) -> None:
    for collector in collectors:
        for node_id, name, slot in graph.consumers[collector]:
            if slot >= len(COLLECTOR_SLOTS):
                reason = f"input {name} of node {node_id} is linked to output {slot} of collector {collector}, which has fewer"
                raise PromptMalformed(source="the prompt", reason=reason)


def _item_prompt(graph: Graph, collectors: Sequence[str], edges: dict[str, Link], first_targets: Sequence[str]) -> Prompt:
    sinks = {node_id: _sink({slot: graph.prompt[node_id]["inputs"][slot] for slot in _slots(graph, node_id)}) for node_id in collectors}
    sinks |= {sink_id: _sink({EDGE_SLOT: list(link)}) for sink_id, link in edges.items()}
    return Graph({**graph.prompt, **sinks}).prune([*collectors, *first_targets])


def _slots(graph: Graph, collector: str) -> tuple[str, ...]:
    return wired_slots(graph.prompt[collector]["inputs"])


def _sink(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"class_type": SINK_CLASS, "inputs": {CLAIM_INPUT: "", **inputs}}


def _source(slots: Sequence[str]) -> dict[str, Any]:
    return {"class_type": SOURCE_CLASS, "inputs": {CLAIM_INPUT: "", SLOTS_INPUT: ",".join(slots)}}


def _collector_plan(graph: Graph, collector: str, last: _LastStage, facts: ClassFacts) -> CollectorPlan:
    slots = _slots(graph, collector)
    unsaved = tuple(slot for slot in slots if not _is_saved(graph, Link(collector, COLLECTOR_SLOTS.index(slot)), last.nodes, facts))
    return CollectorPlan(collector, slots, collector in last.nodes, unsaved)


def _is_saved(graph: Graph, output: Link, last_nodes: Prompt, facts: ClassFacts) -> bool:
    """Whether an output node of the last stage takes this output of a collector, or what another node made of it, in a form it saves."""
    carrying = graph.downstream([user for user, _, slot in graph.consumers[output.node_id] if slot == output.slot])
    taken = (
        (graph.class_of(node_id), facts.output_type(graph.class_of(link.node_id), link.slot))
        for node_id in last_nodes
        for link in graph.links.get(node_id, {}).values()
        if link == output or link.node_id in carrying
    )
    latents = COLLECTOR_SLOTS[output.slot] == "latents"
    return any(facts.saves(class_type, kind, latents=latents) for class_type, kind in taken)


@dataclass
class _LastStage:
    """Grows from the output nodes towards the collectors."""

    graph: Graph
    collectors: frozenset[str]
    behind: Collection[str]
    """Nodes that a collector feeds."""
    varying: Collection[str]
    facts: ClassFacts
    nodes: Prompt = field(default_factory=dict)
    edges: dict[str, Link] = field(default_factory=dict)
    """Sink id -> the output before the cut that it captures."""
    warnings: list[str] = field(default_factory=list)

    def add(self, targets: Sequence[str]) -> None:
        """Take in ``targets`` and all they need."""
        waiting = list(reversed(targets))
        while waiting:
            node_id = waiting.pop()
            if node_id in self.nodes:
                continue
            if node_id in self.collectors:
                self.nodes[node_id] = _source(_slots(self.graph, node_id))
                continue
            self._warn_if_repeated(node_id)
            node, links = self.graph.prompt[node_id], self.graph.links[node_id]
            feeders = {name: self._feeder(link) for name, link in links.items()}
            self.nodes[node_id] = {**node, "inputs": {**node["inputs"], **{name: list(link) for name, link in feeders.items()}}}
            waiting += [link.node_id for link in feeders.values()]

    def _feeder(self, link: Link) -> Link:
        """Where the last stage gets this value from: the node itself, or the source of a crossing edge."""
        if not self._is_captured(link):
            return link
        source_id = edge_id(*link)
        if source_id in self.graph.prompt:
            raise PromptMalformed(source="the prompt", reason=f"the node id {source_id} is needed for a value of node {link.node_id}")
        self.edges[source_id] = link
        self.nodes[source_id] = _source([EDGE_SLOT])
        return Link(source_id, 0)

    def _is_captured(self, link: Link) -> bool:
        if link.node_id in self.collectors or link.node_id in self.behind:
            return False
        class_type = self.graph.class_of(link.node_id)
        kept_apart = link.node_id in self.varying or self.facts.is_output(class_type)
        return kept_apart and self.facts.can_travel(class_type, link.slot)

    def _warn_if_repeated(self, node_id: str) -> None:
        class_type = self.graph.class_of(node_id)
        if node_id not in self.behind and self.facts.is_output(class_type):
            self.warnings.append(f"output node {node_id} ({class_type}) runs again in the last stage: its value cannot be handed over")
