"""What the nodes of this project do in a stage's prompt, as words that a requirement asks for and a capability offers.

An engine that has these nodes does all of it.  One without them (`engine.attach`) puts other nodes in their place, where it can.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator

from distributed_comfy.messages import Prompt
from distributed_comfy.workflow.classes import CLAIM_INPUT, COLLECTOR_SLOTS, EDGE_SLOT, OWN_CLASSES, SINK_CLASS, SLOTS_INPUT, SOURCE_CLASS
from distributed_comfy.workflow.graph import Graph, Link

SLOT_TYPES = dict(zip(COLLECTOR_SLOTS, ("IMAGE", "AUDIO", "LATENT", "MASK"), strict=True))
"""Slot of a collector -> type of what it takes and gives."""

TypeOf = Callable[[Link], str]
"""The type of an output, by the link to it; empty where it is unknown."""


def capturing(kind: str) -> str:
    """A sink takes values of this type out of the graph."""
    return f"capturing {kind or 'a value of unknown type'}"


def supplying(kind: str) -> str:
    """A source brings values of this type into the graph."""
    return f"supplying {kind or 'a value of unknown type'}"


def supplying_nothing(kind: str) -> str:
    """A collector's output that no item feeds is used all the same."""
    return f"supplying an empty {kind}"


def running(class_type: str) -> str:
    """Another node of this project runs."""
    return f"running {class_type}"


def needed_services(prompt: Prompt, type_of: TypeOf) -> tuple[str, ...]:
    """All services that a stage needs, sorted.

    Args:
        prompt: of the stage, pruned to what runs.
        type_of: for outputs of the stage's own nodes, and of those of the uncut prompt that an edge's source stands for.
    """
    graph = Graph(prompt)
    found: set[str] = set()
    for node_id in prompt:
        class_type = graph.class_of(node_id)
        if class_type == SINK_CLASS:
            found.update(_captures(graph, node_id, type_of))
        elif class_type == SOURCE_CLASS:
            found.update(_supplies(graph, node_id, type_of))
        elif class_type in OWN_CLASSES:
            found.add(running(class_type))
    return tuple(sorted(found))


def edge_link(source_id: str) -> Link | None:
    """The output for which the source of an edge stands; None for another id."""
    node_id, mark, slot = source_id.rpartition("~")
    return Link(node_id, int(slot)) if mark and slot.isdecimal() else None


def wired_slots_of(inputs: dict[str, object]) -> tuple[str, ...]:
    """The slots that a source supplies."""
    return tuple(str(inputs.get(SLOTS_INPUT, "")).split(","))


def _captures(graph: Graph, node_id: str, type_of: TypeOf) -> Iterator[str]:
    for slot, link in graph.links[node_id].items():
        if slot != CLAIM_INPUT:
            yield capturing(SLOT_TYPES.get(slot) or type_of(link))


def _supplies(graph: Graph, node_id: str, type_of: TypeOf) -> Iterator[str]:
    wired = wired_slots_of(graph.prompt[node_id]["inputs"])
    if EDGE_SLOT in wired:
        link = edge_link(node_id)
        yield supplying(type_of(link) if link else "")
        return
    for _, _, output in graph.consumers[node_id]:
        slot = COLLECTOR_SLOTS[output] if output < len(COLLECTOR_SLOTS) else ""
        yield supplying(SLOT_TYPES[slot]) if slot in wired else supplying_nothing(SLOT_TYPES.get(slot, "value"))
