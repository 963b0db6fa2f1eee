"""DistributedSeed in a prompt: which nodes depend on it, what each item samples with, and whether that is still a seed."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distributed_comfy.errors import PromptMalformed, SeedNotLiteral, SeedOutOfRange
from distributed_comfy.messages import Patch, Prompt, apply_patches
from distributed_comfy.planning.facts import SEED_LIMIT, ClassFacts
from distributed_comfy.workflow.classes import COLLECTOR_CLASS, COLLECTOR_SLOTS, SEED_CLASS
from distributed_comfy.workflow.graph import Graph, as_link

_NUMBER_NODES = {"PrimitiveInt": "value"}
"""Nodes that give a literal of their own: class -> its input."""


@dataclass(frozen=True)
class SeedUse:
    """An input that a DistributedSeed feeds."""

    node_id: str
    input: str
    base: int
    """Item 0's value."""


@dataclass(frozen=True)
class Seeds:
    """Every use of every DistributedSeed of a prompt."""

    uses: tuple[SeedUse, ...]
    varying: frozenset[str]
    """Nodes that see a seed, directly or through others; the DistributedSeed nodes are not among them."""
    limit: int = SEED_LIMIT
    """Largest value that all uses take; DistributedSeed's own maximum does not count, because no item runs that node."""

    def patches(self, index: int, prompt: Prompt) -> tuple[Patch, ...]:
        """What item ``index`` has in place of the links, for the nodes that ``prompt`` has."""
        return tuple(Patch(use.node_id, use.input, use.base + index) for use in self.uses if use.node_id in prompt)

    def replace_nodes(self, prompt: Prompt) -> Prompt:
        """``prompt`` without DistributedSeed nodes, with item 0's values in place of their links."""
        literal = apply_patches(prompt, self.patches(0, prompt))
        return {node_id: node for node_id, node in literal.items() if node["class_type"] != SEED_CLASS}

    def label(self, index: int) -> str:
        """Seed of an item for people, in decimal: that of the first DistributedSeed; empty where there is none."""
        return str(self.uses[0].base + index) if self.uses else ""

    def check_range(self, items: int) -> None:
        """Refuse a batch that leaves the range of a seed.

        Raises:
            SeedOutOfRange: a base is negative, or base + items - 1 is beyond `limit`.
        """
        for base in dict.fromkeys(use.base for use in self.uses):
            if base < 0 or base + items - 1 > self.limit:
                raise SeedOutOfRange(seed=base, items=items, limit=self.limit)


def with_seed(prompt: Prompt, seed: int) -> Prompt:
    """``prompt`` with every DistributedSeed set to ``seed``."""
    return {
        node_id: {**node, "inputs": {**node["inputs"], "seed": seed}} if node["class_type"] == SEED_CLASS else node
        for node_id, node in prompt.items()
    }


def find_seeds(graph: Graph, facts: ClassFacts) -> Seeds:
    """The seeds of a prompt that is pruned to what runs.

    Raises:
        SeedNotLiteral: a seed comes from a node that only a worker can ask.
        PromptMalformed: a seed is missing or no whole number, or is linked where it cannot be.
    """
    nodes = graph.of_class(SEED_CLASS)
    uses, limits = [], [SEED_LIMIT]
    for seed_node in nodes:
        base = _base(graph.prompt, seed_node)
        for node_id, name, slot in graph.consumers[seed_node]:
            _check_link(graph, seed_node, node_id, name, slot)
            uses.append(SeedUse(node_id, name, base))
            limits.append(facts.seed_limit(graph.class_of(node_id), name))
    return Seeds(tuple(uses), frozenset(graph.downstream(nodes).difference(nodes)), min(limits))


def _check_link(graph: Graph, seed_node: str, node_id: str, name: str, slot: int) -> None:
    reason = ""
    if slot:
        reason = f"input {name} of node {node_id} is linked to output {slot} of node {seed_node}, which has one"
    if graph.class_of(node_id) == COLLECTOR_CLASS and name in COLLECTOR_SLOTS:
        reason = f"collector {node_id} takes {', '.join(COLLECTOR_SLOTS)}, not the seed of node {seed_node}"
    if reason:
        raise PromptMalformed(source="the prompt", reason=reason)


def _base(prompt: Prompt, seed_node: str) -> int:
    value = prompt[seed_node]["inputs"].get("seed")
    link = as_link(value)
    if link:
        feeder = prompt[link.node_id]
        value = feeder["inputs"].get(_NUMBER_NODES.get(feeder["class_type"], ""))
        if value is None or as_link(value):
            raise SeedNotLiteral(node_id=seed_node, feeder=f"{link.node_id} ({feeder['class_type']})")
    return _whole_number(value, seed_node)


def _whole_number(value: Any, seed_node: str) -> int:
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        value = int(value)  # ComfyUI takes a number in quotes too
    if not isinstance(value, int) or isinstance(value, bool):
        raise PromptMalformed(source="the prompt", reason=f"seed of node {seed_node} is {value!r}, not a whole number")
    return value
