"""Turns an item of a job into nodes that a running ComfyUI adds to the prompt that the job came from.

A node of the item that is the same as in that prompt, with all that feeds it, is not added again: the item is linked to the prompt's own
node, so loaders and text encoders run once for all items and stay in ComfyUI's cache.  What differs, and what depends on it, becomes a
clone.  Behind each sink's links stands a node that captures, and behind the last of these the one that ends the item.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distributed_comfy.messages import Prompt
from distributed_comfy.workflow.classes import CLAIM_INPUT, LEGACY_INPUTS, SEED_CLASS, SINK_CLASS
from distributed_comfy.workflow.graph import Graph, Link, as_link

CAPTURE_CLASS = "DistributedLocalCapture"
"""Internal: takes what a sink would have taken."""
END_CLASS = "DistributedLocalEnd"
"""Internal: hands a local item in."""
SINK_INPUT = "sink"
AFTER_INPUT = "after"
"""A raw link, for the order alone: a value that is blocked must not keep the item from ending."""

_NOTHING = object()


@dataclass(frozen=True)
class OuterPrompt:
    """The prompt that the job was planned from."""

    planned: Prompt
    """As the user gave it."""
    running: Prompt
    """As ComfyUI runs it: its validation has made numbers of texts, and the like."""
    runs_anyway: frozenset[str] = frozenset()
    """Nodes that ComfyUI runs also where no item runs here: item 0 takes what they give, where that is its own."""


@dataclass(frozen=True)
class LocalItem:
    """An item that is to run here."""

    prompt: Prompt
    """Its stage's prompt with its patches."""
    targets: tuple[str, ...]
    claim_id: str
    asking: str
    """The node of the outer prompt for which it runs; what is shown of capturing is shown there."""


@dataclass(frozen=True)
class Expansion:
    """What ComfyUI is given."""

    nodes: Prompt
    end: str
    """Id of the node that ends the item."""
    shared: frozenset[str]
    """Nodes of the item for which the outer prompt's own run."""


def expand_item(item: LocalItem, outer: OuterPrompt, prefix: str) -> Expansion:
    """The nodes to add for an item.

    Args:
        item: what to run.
        outer: where it is added.
        prefix: of the new ids; no other item of this prompt may have it.
    """
    graph = Graph(item.prompt)
    shared = _shared_nodes(graph, outer)
    sinks = [target for target in item.targets if graph.class_of(target) == SINK_CLASS]
    needed = graph.upstream(item.targets) - set(sinks) - shared

    def place(link: Link) -> list[Any]:
        return [link.node_id if link.node_id in shared else prefix + link.node_id, link.slot]

    nodes = {prefix + node_id: _clone(node_id, graph, outer, place, item.asking) for node_id in item.prompt if node_id in needed}
    before = ""
    for number, sink in enumerate(sinks):
        links = {name: place(link) for name, link in graph.links[sink].items()}
        after = {AFTER_INPUT: [before, 0]} if before else {}
        before = f"{prefix}~capture{number}"
        inputs = {CLAIM_INPUT: item.claim_id, SINK_INPUT: sink, **links, **after}
        nodes[before] = {"class_type": CAPTURE_CLASS, "inputs": inputs, "override_display_id": item.asking}
    end = f"{prefix}~end"
    inputs = {CLAIM_INPUT: item.claim_id, AFTER_INPUT: [before, 0]}
    nodes[end] = {"class_type": END_CLASS, "inputs": inputs, "override_display_id": item.asking}
    return Expansion(nodes, end, frozenset(shared & graph.upstream(item.targets)))


def _shared_nodes(graph: Graph, outer: OuterPrompt) -> set[str]:
    """Those that give what the outer prompt's node of the same id gives."""
    shared: set[str] = set()
    for node_id in graph.order():
        if node_id in outer.running and _is_same(node_id, graph.prompt[node_id], outer, shared):
            shared.add(node_id)
    return shared


def _is_same(node_id: str, node: Mapping[str, Any], outer: OuterPrompt, shared: set[str]) -> bool:
    planned = outer.planned.get(node_id)
    if planned is None or planned["class_type"] != node["class_type"]:
        return False
    seeds = outer.planned if node_id in outer.runs_anyway else {}
    names = set(node["inputs"]) | (set(planned["inputs"]) - LEGACY_INPUTS)
    return all(_gives_same(node["inputs"].get(name, _NOTHING), planned["inputs"].get(name, _NOTHING), seeds, shared) for name in names)


def _gives_same(value: Any, planned: Any, seeds: Prompt, shared: set[str]) -> bool:
    link = as_link(value)
    if link is not None:
        return link == as_link(planned) and link.node_id in shared
    return _is_equal(value, _seed_behind(planned, seeds))


def _seed_behind(value: Any, prompt: Prompt) -> Any:
    """What the outer prompt's DistributedSeed gives, where the value is a link to one: its own, which is item 0's."""
    link = as_link(value)
    feeder = prompt.get(link.node_id) if link else None
    if feeder is None or feeder["class_type"] != SEED_CLASS or as_link(feeder["inputs"].get("seed")):
        return value
    return feeder["inputs"].get("seed")


def _is_equal(one: Any, other: Any) -> bool:
    """``True`` is not 1 here, nor 1 the same as 1.0: a node may tell them apart."""
    return type(one) is type(other) and bool(one == other)


def _clone(node_id: str, graph: Graph, outer: OuterPrompt, place: Callable[[Link], list[Any]], asking: str) -> dict[str, Any]:
    """A node of the item with links to where its feeders run, and literals as ComfyUI's validation left them where they are the user's."""
    node, links = graph.prompt[node_id], graph.links[node_id]
    planned, running = (prompt.get(node_id, {"inputs": {}})["inputs"] for prompt in (outer.planned, outer.running))

    def literal(name: str, value: Any) -> Any:
        converted = running.get(name, value)
        return converted if _is_equal(value, planned.get(name, _NOTHING)) and as_link(converted) is None else value

    inputs = {name: place(links[name]) if name in links else literal(name, value) for name, value in node["inputs"].items()}
    shown = node_id if node_id in outer.running else asking
    return {"class_type": node["class_type"], "inputs": inputs, "override_display_id": shown}
