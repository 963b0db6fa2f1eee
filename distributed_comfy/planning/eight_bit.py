"""Where nothing but 8 bits is made of the images that a job brings together, so that 8 bits of them are all that need to travel."""
from __future__ import annotations

from collections.abc import Iterable

from distributed_comfy.planning.cut import passes_through, wired_slots
from distributed_comfy.workflow.classes import COLLECTOR_CLASS, COLLECTOR_SLOTS
from distributed_comfy.workflow.graph import Graph, Link

_IMAGES = COLLECTOR_SLOTS.index("images")
_SINKS = frozenset(
    {
        ("SaveImage", "images"), ("PreviewImage", "images"), ("SaveImageWebsocket", "images"), ("SaveAnimatedPNG", "images"),
        ("SaveAnimatedWEBP", "images"),
    }
)  # fmt: skip
"""Class and input of ComfyUI's own nodes that cut numbers down to ``uint8(clip(255 * x, 0, 255))`` before they do anything else with them.

Each was read in ComfyUI 0.3.64.  Others may be 8-bit too (SaveWEBM is), but what they make is not compared with by a test of ours."""


def eight_bit_nodes(graph: Graph, collectors: Iterable[str], upscale: str = "") -> tuple[str, ...]:
    """Those of these nodes of whose images nobody takes more than 8 bits.

    Where nothing takes them, the master saves them as 8-bit PNG.

    Args:
        graph: without nodes that lead to no output.
        collectors: at which the prompt is cut.
        upscale: where it is cut besides; empty for none.
    """
    wired = [node_id for node_id in collectors if "images" in wired_slots(graph.prompt[node_id]["inputs"])]
    return tuple(node_id for node_id in [*wired, *([upscale] if upscale else [])] if _only_sinks(graph, Link(node_id, _IMAGES)))


def _only_sinks(graph: Graph, output: Link) -> bool:
    return all(_is_sink(graph, node_id, name) for node_id, name, slot in graph.consumers.get(output.node_id, ()) if slot == output.slot)


def _is_sink(graph: Graph, node_id: str, name: str) -> bool:
    """Also a collector that only passes images through, where what follows it is."""
    class_type = graph.class_of(node_id)
    if class_type == COLLECTOR_CLASS and name == "images" and passes_through(graph.prompt[node_id]["inputs"]):
        return _only_sinks(graph, Link(node_id, _IMAGES))
    return (class_type, name) in _SINKS
