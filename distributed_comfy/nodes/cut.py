"""The two internal nodes at the ends of a cut: a sink hands values out of a running graph, a source hands them in again.

Both carry a ``claim_id`` literal that the engine fills in: new with each claim, so that ComfyUI's output cache never stands in for
them while everything upstream of a sink stays cached.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from distributed_comfy.nodes.any_type import AnyType
from distributed_comfy.nodes.collector import nothing_of
from distributed_comfy.nodes.context import NodeContext
from distributed_comfy.workflow.classes import CLAIM_INPUT, COLLECTOR_SLOTS, EDGE_SLOT, SLOTS_INPUT


class DistributedSink:
    """Takes what a collector would have taken, or the value of an edge, as the list that the graph delivers."""

    context: ClassVar[NodeContext]
    """Set in the subclass that `bind` makes."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    FUNCTION = "capture"
    CATEGORY = "distributed/internal"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    DESCRIPTION = "Internal: hands its inputs to the cluster."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {
            "required": {CLAIM_INPUT: ("STRING", {"default": ""})},
            "optional": {slot: (AnyType("*"),) for slot in (*COLLECTOR_SLOTS, EDGE_SLOT)},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def capture(self, claim_id: list[str], unique_id: list[str], **slots: list[Any]) -> dict[str, Any]:
        """Hand each wired slot's list to the context; gives no outputs and no ui."""
        for slot, values in slots.items():
            self.context.capture(unique_id[0], slot, values)
        return {}


class DistributedSource:
    """Offers what a collector collected (images, audio, latents, masks), or the value of an edge (output 0)."""

    context: ClassVar[NodeContext]
    """Set in the subclass that `bind` makes."""
    nothing: ClassVar[Sequence[Any]] = ()
    """What an output without any value gives: the engine's marker that stops everything behind it, where it has one."""

    # Output 0 is also any edge's type, so it must link with everything; to code that looks at the name it is what a collector gives.
    RETURN_TYPES: ClassVar[tuple[str, ...]] = (AnyType("IMAGE"), "AUDIO", "LATENT", "MASK")
    RETURN_NAMES = COLLECTOR_SLOTS
    OUTPUT_IS_LIST = (True, True, True, True)
    FUNCTION = "supply"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: gives what the items of the job made."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs; ``slots`` names the wired slots, ``images,audio`` or ``value``."""
        return {
            "required": {CLAIM_INPUT: ("STRING", {"default": ""}), SLOTS_INPUT: ("STRING", {"default": "images"})},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def supply(self, claim_id: str, slots: str, unique_id: str) -> tuple[list[Any], ...]:
        """The lists that the graph would have delivered; one batch from a collector, `nothing` where no item gave a value."""
        wired = slots.split(",")
        if wired == [EDGE_SLOT]:
            return (self._supplied(unique_id, EDGE_SLOT), *([] for _ in COLLECTOR_SLOTS[1:]))
        return tuple(self._supplied(unique_id, slot) if slot in wired else [nothing_of(slot)] for slot in COLLECTOR_SLOTS)

    def _supplied(self, unique_id: str, slot: str) -> list[Any]:
        return self.context.supply(unique_id, slot) or list(self.nothing)


def bind(node_class: type, **attributes: Any) -> type:
    """A subclass of a node class with what it needs of one engine: ``context`` and ``nothing``, or what else it declares."""
    return type(node_class.__name__, (node_class,), {**attributes, "__doc__": node_class.__doc__, "__module__": node_class.__module__})
