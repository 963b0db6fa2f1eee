"""The prompt as a graph: who feeds whom, what a set of targets needs, and in which order nodes can run."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from distributed_comfy.errors import PromptHasCycle
from distributed_comfy.messages import Prompt


class Link(NamedTuple):
    """One output of a node."""

    node_id: str
    slot: int


def as_link(value: Any) -> Link | None:
    """``value`` as a link if ComfyUI takes it for one: a list of a string and a number.

    Everything else is a literal, a list wrapped as ``{"__value__": [...]}`` too.
    """
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], (int, float)):
        return Link(value[0], int(value[1]))
    return None


class Graph:
    """Read-only view of a prompt; links to nodes that are not in it are left out."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        links = {
            node_id: {name: link for name, value in node["inputs"].items() if (link := as_link(value)) and link.node_id in prompt}
            for node_id, node in prompt.items()
        }
        self.links: Mapping[str, Mapping[str, Link]] = links
        """node id -> input -> the output that feeds it."""

    @cached_property
    def consumers(self) -> Mapping[str, tuple[tuple[str, str, int], ...]]:
        """node id -> (consuming node, its input, slot), in the prompt's order."""
        found: dict[str, list[tuple[str, str, int]]] = {node_id: [] for node_id in self.prompt}
        for node_id, inputs in self.links.items():
            for name, link in inputs.items():
                found[link.node_id].append((node_id, name, link.slot))
        return {node_id: tuple(users) for node_id, users in found.items()}

    def class_of(self, node_id: str) -> str:
        """The node's ``class_type``."""
        return str(self.prompt[node_id]["class_type"])

    def of_class(self, class_type: str) -> tuple[str, ...]:
        """Ids of all nodes of a class, in the prompt's order."""
        return tuple(node_id for node_id in self.prompt if self.class_of(node_id) == class_type)

    def upstream(self, ids: Iterable[str]) -> set[str]:
        """``ids`` and every node that feeds one of them."""
        return _reach(ids, {node_id: [link.node_id for link in inputs.values()] for node_id, inputs in self.links.items()})

    def downstream(self, ids: Iterable[str]) -> set[str]:
        """``ids`` and every node that one of them feeds."""
        return _reach(ids, {node_id: [user for user, _, _ in users] for node_id, users in self.consumers.items()})

    def prune(self, targets: Iterable[str]) -> Prompt:
        """What is needed to run ``targets``, in the prompt's order; the nodes themselves are shared."""
        needed = self.upstream(targets)
        return {node_id: node for node_id, node in self.prompt.items() if node_id in needed}

    def order(self) -> tuple[str, ...]:
        """All nodes, each after those that feed it.

        Raises:
            PromptHasCycle: no such order exists.
        """
        placed = self._placeable()
        if len(placed) < len(self.prompt):
            raise PromptHasCycle(nodes=", ".join(self.find_cycle()))
        return tuple(placed)

    def find_cycle(self) -> tuple[str, ...]:
        """Nodes that feed each other in a ring, in the direction of the data; empty where there is none."""
        placed = set(self._placeable())
        rest = {
            node_id: [link.node_id for link in inputs.values() if link.node_id not in placed]
            for node_id, inputs in self.links.items()
            if node_id not in placed
        }
        if not rest:
            return ()
        path, node_id = [], next(iter(rest))
        while node_id not in path:  # every node of the rest has a feeder in the rest, so this walk must come round
            path.append(node_id)
            node_id = rest[node_id][0]
        return tuple(reversed(path[path.index(node_id):]))

    def _placeable(self) -> list[str]:
        """Nodes in topological order, without those on a cycle or behind one."""
        waiting = {node_id: len(inputs) for node_id, inputs in self.links.items()}
        ready = [node_id for node_id, count in waiting.items() if not count]
        for node_id in ready:  # grows while it is read
            for user, _, _ in self.consumers[node_id]:
                waiting[user] -= 1
                if not waiting[user]:
                    ready.append(user)
        return ready


def _reach(start: Iterable[str], neighbours: Mapping[str, list[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(start)
    while waiting:
        node_id = waiting.pop()
        if node_id not in seen:
            seen.add(node_id)
            waiting.extend(neighbours[node_id])
    return seen
