"""DistributedValue and DistributedModelName in a prompt: which inputs they feed, and the literal that each item has there."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distributed_comfy.errors import PromptMalformed, ValueNotLiteral
from distributed_comfy.messages import Patch, Prompt, apply_patches
from distributed_comfy.workflow.classes import COLLECTOR_CLASS, COLLECTOR_SLOTS, MODEL_NAME_CLASS, VALUE_CLASS
from distributed_comfy.workflow.graph import Graph, Link, as_link
from distributed_comfy.workflow.item_values import ItemValues, read_item_values

_LITERAL_NODES = frozenset(
    {"PrimitiveString", "PrimitiveStringMultiline", "PrimitiveInt", "PrimitiveFloat", "PrimitiveBoolean"}
)  # fmt: skip
"""Nodes that give a literal of their own: their input ``value``."""


@dataclass(frozen=True)
class ValueUse:
    """An input that one of the two classes feeds."""

    node_id: str
    input: str
    values: ItemValues


@dataclass(frozen=True)
class Values:
    """Every use of every DistributedValue and DistributedModelName of a prompt."""

    uses: tuple[ValueUse, ...]
    varying: frozenset[str]
    """Nodes that see a value which differs between items, directly or through others."""
    warnings: tuple[str, ...] = ()

    def patches(self, index: int, prompt: Prompt) -> tuple[Patch, ...]:
        """Where item ``index`` differs from item 0, for the nodes that ``prompt`` has."""
        differing = (use for use in self.uses if index in use.values.own and use.node_id in prompt)
        return tuple(Patch(use.node_id, use.input, use.values.own[index]) for use in differing)

    def all_patches(self, items: int, prompt: Prompt) -> tuple[Patch, ...]:
        """The `patches` of the first ``items`` items, each once."""
        indexes = sorted({index for use in self.uses for index in use.values.own if index < items})
        return tuple(dict.fromkeys(patch for index in indexes for patch in self.patches(index, prompt)))

    def replace_nodes(self, prompt: Prompt) -> Prompt:
        """``prompt`` with item 0's literals in place of the links and without DistributedValue nodes; those that show a name stay."""
        literals = tuple(Patch(use.node_id, use.input, use.values.default) for use in self.uses if use.node_id in prompt)
        literal = apply_patches(prompt, literals)
        return {node_id: node for node_id, node in literal.items() if node["class_type"] != VALUE_CLASS}


def find_values(graph: Graph) -> Values:
    """The values of a prompt that is pruned to what runs.

    Raises:
        ValueNotLiteral: a DistributedValue takes its values from a node that only a worker can ask.
        PromptMalformed: a value is linked where it cannot be.
    """
    found: dict[str, ItemValues] = {}
    uses, warnings = [], []
    for node_id in graph.order():
        if graph.class_of(node_id) == VALUE_CLASS:
            found[node_id] = _values(graph.prompt, node_id)
            warnings += [f"DistributedValue {node_id}: {fault}; its default is used" for fault in found[node_id].faults]
        elif graph.class_of(node_id) == MODEL_NAME_CLASS and (name := _name(graph.prompt, node_id, found)):
            found[node_id] = name
        if node_id in found:
            for user, input_name, slot in graph.consumers[node_id]:
                _check_link(graph, node_id, Link(user, slot), input_name)
                uses.append(ValueUse(user, input_name, found[node_id]))
    nodes = [node_id for node_id, values in found.items() if values.own]
    sources = {node_id for node_id in nodes if graph.class_of(node_id) == VALUE_CLASS}
    return Values(tuple(uses), frozenset(graph.downstream(nodes) - sources), tuple(warnings))


def _values(prompt: Prompt, node_id: str) -> ItemValues:
    inputs = prompt[node_id]["inputs"]
    given = {}
    for name in ("default_value", "worker_values"):
        given[name] = value = literal_behind(prompt, inputs.get(name, ""))
        if link := as_link(value):
            feeder = f"{link.node_id} ({prompt[link.node_id]['class_type']})"
            raise ValueNotLiteral(node_id=node_id, input=name, feeder=feeder)
    return read_item_values(**given)


def _name(prompt: Prompt, node_id: str, found: Mapping[str, ItemValues]) -> ItemValues | None:
    """What a DistributedModelName hands on; None where only the run can tell."""
    text = literal_behind(prompt, prompt[node_id]["inputs"].get("text", ""))
    link = as_link(text)
    if link is None:
        return ItemValues(str(text)) if isinstance(text, (str, int, float)) else None
    return found[link.node_id].mapped(str) if link.node_id in found else None


def literal_behind(prompt: Prompt, value: object) -> object:
    """The value, or the literal of a node that has nothing else to give."""
    link = as_link(value)
    if link is None or prompt[link.node_id]["class_type"] not in _LITERAL_NODES:
        return value
    return prompt[link.node_id]["inputs"].get("value", value)


def _check_link(graph: Graph, node_id: str, use: Link, input_name: str) -> None:
    reason = ""
    if use.slot:
        reason = f"input {input_name} of node {use.node_id} is linked to output {use.slot} of node {node_id}, which has one"
    if graph.class_of(use.node_id) == COLLECTOR_CLASS and input_name in COLLECTOR_SLOTS:
        reason = f"collector {use.node_id} takes {', '.join(COLLECTOR_SLOTS)}, not the value of node {node_id}"
    if reason:
        raise PromptMalformed(source="the prompt", reason=reason)
