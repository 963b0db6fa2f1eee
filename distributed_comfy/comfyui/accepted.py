"""A prompt that this ComfyUI has accepted, and which of its nodes get what they give from a job."""
from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from distributed_comfy.messages import Prompt, content_hash
from distributed_comfy.planning.cut import passes_through, wired_slots
from distributed_comfy.workflow.classes import COLLECTOR_CLASS, UPSCALE_CLASS
from distributed_comfy.workflow.graph import Graph

Place = tuple[Any, str]
"""ComfyUI's number and id of a queued prompt.  A client may choose the id, and give it twice."""


@dataclass(frozen=True)
class AcceptedPrompt:
    """What ComfyUI has put into its queue."""

    prompt_id: str
    planned: Prompt
    """As the user gave it."""
    running: Prompt
    """As ComfyUI runs it."""
    outputs: tuple[str, ...]
    """Output nodes that ComfyUI runs: those that its validation found good, or that were asked for."""
    extra_pnginfo: dict[str, Any] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    """Values that this ComfyUI does not list, so that only workers can run the nodes that have them; in words."""
    number: Any = 0
    """Its place in the queue, as ComfyUI numbers them."""

    @property
    def place(self) -> Place:
        """What tells it from every other prompt that waits or runs."""
        return self.number, self.prompt_id

    @cached_property
    def needed(self) -> Prompt:
        """Of the user's prompt, what these output nodes need."""
        return Graph(self.planned).prune(one for one in self.outputs if one in self.planned)

    @cached_property
    def job_nodes(self) -> frozenset[str]:
        """Collectors that collect, and the upscale."""
        return job_nodes_of(self.needed)

    @cached_property
    def runs_anyway(self) -> frozenset[str]:
        """Nodes that ComfyUI runs for output nodes that no collector and no upscale lies before."""
        ends = {node_id: {**node, "inputs": {}} if node_id in self.job_nodes else node for node_id, node in self.needed.items()}
        return frozenset(Graph(ends).upstream(one for one in self.outputs if one in ends)) - self.job_nodes

    @cached_property
    def content(self) -> str:
        """Equal for prompts of which ComfyUI has the second one in its cache."""
        return content_hash({"nodes": self.needed, "outputs": sorted(self.outputs)})


def job_nodes_of(prompt: Prompt) -> frozenset[str]:
    """Collectors that collect, and the upscale; one behind an upscale passes through."""
    graph = Graph(prompt)
    upscales = graph.of_class(UPSCALE_CLASS)
    behind = graph.downstream(upscales)
    collectors = (one for one in graph.of_class(COLLECTOR_CLASS) if one not in behind)
    return frozenset([*upscales, *(one for one in collectors if _collects(graph.prompt[one]["inputs"]))])


def _collects(inputs: dict[str, Any]) -> bool:
    return bool(wired_slots(inputs)) and not passes_through(inputs)
