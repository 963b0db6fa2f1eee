"""One stage of a cut prompt, grown from what it must run towards what other stages hand it."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed_comfy.errors import PromptMalformed
from distributed_comfy.messages import Prompt
from distributed_comfy.planning.facts import ClassFacts
from distributed_comfy.workflow.classes import CLAIM_INPUT, EDGE_SLOT, SINK_CLASS, SLOTS_INPUT, SOURCE_CLASS, edge_id
from distributed_comfy.workflow.graph import Graph, Link


def sink(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A node that takes values out of a stage."""
    return {"class_type": SINK_CLASS, "inputs": {CLAIM_INPUT: "", **inputs}}


def edge_sink(link: Link) -> dict[str, Any]:
    """The sink of one edge."""
    return sink({EDGE_SLOT: list(link)})


def source(slots: Sequence[str]) -> dict[str, Any]:
    """A node that hands values into a stage."""
    return {"class_type": SOURCE_CLASS, "inputs": {CLAIM_INPUT: "", SLOTS_INPUT: ",".join(slots)}}


@dataclass
class Stage:
    """A prompt that grows; every value that it needs is made in it or comes from a source."""

    graph: Graph
    facts: ClassFacts
    name: str
    """For warnings."""
    stand_ins: Mapping[str, Sequence[str]]
    """Nodes that a source of the same id stands for -> its slots."""
    takes: Callable[[Link], bool]
    """Whether the value of this output is taken from another stage."""
    nodes: Prompt = field(default_factory=dict)
    edges: dict[str, Link] = field(default_factory=dict)
    """Source id -> the output whose value it takes."""
    warnings: list[str] = field(default_factory=list)
    _targets: set[str] = field(default_factory=set)

    def add(self, targets: Iterable[str]) -> None:
        """Take in ``targets`` and all they need.

        Raises:
            PromptMalformed: a node has the id that a source needs.
        """
        targets = list(targets)
        self._targets.update(targets)
        waiting = targets[::-1]
        while waiting:
            node_id = waiting.pop()
            if node_id in self.nodes:
                continue
            if node_id in self.stand_ins:
                self.nodes[node_id] = source(self.stand_ins[node_id])
                continue
            self._warn_if_repeated(node_id)
            node, links = self.graph.prompt[node_id], self.graph.links[node_id]
            feeders = {name: self._feeder(link) for name, link in links.items()}
            self.nodes[node_id] = {**node, "inputs": {**node["inputs"], **{name: list(link) for name, link in feeders.items()}}}
            waiting += [link.node_id for link in feeders.values()]

    def add_sink(self, link: Link) -> str:
        """Capture the value of an output that this stage makes; the sink's id."""
        sink_id = free_edge_id(self.graph, link)
        self.add([link.node_id])
        self.nodes[sink_id] = edge_sink(link)
        return sink_id

    def _feeder(self, link: Link) -> Link:
        """Where the stage gets this value from: the node itself, or a source."""
        if not self.takes(link):
            return link
        source_id = free_edge_id(self.graph, link)
        self.edges[source_id] = link
        self.nodes[source_id] = source([EDGE_SLOT])
        return Link(source_id, 0)

    def _warn_if_repeated(self, node_id: str) -> None:
        class_type = self.graph.class_of(node_id)
        if node_id not in self._targets and self.facts.is_output(class_type):
            self.warnings.append(f"output node {node_id} ({class_type}) runs again in {self.name}: its value cannot be handed over")


def free_edge_id(graph: Graph, link: Link) -> str:
    """Id of an edge's sink and source.

    Raises:
        PromptMalformed: a node of the prompt has it.
    """
    found = edge_id(*link)
    if found in graph.prompt:
        raise PromptMalformed(source="the prompt", reason=f"the node id {found} is needed for a value of node {link.node_id}")
    return found
