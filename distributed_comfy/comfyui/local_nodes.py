"""The four internal nodes by which items run in the master's ComfyUI: one captures, one ends an item; turns and who waits for them."""
from __future__ import annotations

from typing import Any, ClassVar

from distributed_comfy.comfyui.expansion import AFTER_INPUT, SINK_INPUT
from distributed_comfy.comfyui.master_nodes import JobNodes
from distributed_comfy.comfyui.turns import OVER, PART_INPUTS, TURNS_INPUT, Turns
from distributed_comfy.errors import NodeOutsideJob
from distributed_comfy.nodes.any_type import AnyType
from distributed_comfy.workflow.classes import CLAIM_INPUT, COLLECTOR_SLOTS, EDGE_SLOT

_TEXT = ("STRING", {"default": ""})
_ORDER = (AnyType("*"), {"rawLink": True})
"""Says only what runs before: a value that is blocked upstream must not block what follows."""


class DistributedLocalCapture:
    """Takes what a sink would have taken, as the list that the graph delivers."""

    nodes: ClassVar[JobNodes]
    """Set in the subclass that `bind` makes."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = (AnyType("*"),)
    FUNCTION = "capture"
    CATEGORY = "distributed/internal"
    INPUT_IS_LIST = True
    DESCRIPTION = "Internal: keeps what an item of a job gave."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        slots = {slot: (AnyType("*"),) for slot in (*COLLECTOR_SLOTS, EDGE_SLOT)}
        return {"required": {CLAIM_INPUT: _TEXT, SINK_INPUT: _TEXT}, "optional": {AFTER_INPUT: _ORDER, **slots}}

    def capture(self, claim_id: list[str], sink: list[str], after: Any = None, **slots: list[Any]) -> tuple[str]:
        """Hand each slot's list on."""
        for slot, values in slots.items():
            self.nodes.participation.take(claim_id[0], sink[0], slot, values)
        return (claim_id[0],)


class DistributedLocalEnd:
    """Hands the item in."""

    nodes: ClassVar[JobNodes]
    """Set in the subclass that `bind` makes."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("STRING",)
    FUNCTION = "hand_in"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: ends an item of a job."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {CLAIM_INPUT: _TEXT, AFTER_INPUT: _ORDER}, "hidden": {"unique_id": "UNIQUE_ID"}}

    async def hand_in(self, claim_id: str, after: Any, unique_id: str) -> tuple[str]:
        """See the class.

        Raises:
            NodeOutsideJob: it stands in a prompt of the user's, or the job's prompt is over.
        """
        if not await self.nodes.unless_interrupted(self.nodes.participation.finish, claim_id):
            raise NodeOutsideJob(node_id=unique_id)
        return (claim_id,)


class DistributedLocalTurn:
    """Waits for an item that this ComfyUI takes, and makes it; or for the end of the job."""

    nodes: ClassVar[JobNodes]
    """Set in the subclass that `bind` makes."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("STRING",)
    FUNCTION = "make"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: makes one item of a job."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {TURNS_INPUT: _TEXT}, "hidden": {"unique_id": "UNIQUE_ID"}}

    async def make(self, turns: str, unique_id: str) -> Any:
        """The nodes of an item, which give its claim; `OVER`, where all that the node waits for is here.

        Raises:
            NodeOutsideJob: it stands in a prompt of the user's, or the job's prompt is over.
        """
        return await self.nodes.turn(_found(self.nodes, turns, unique_id), unique_id)


class DistributedLocalWait:
    """Gives what the node that waits for the job gives, and has one item after the other made before."""

    nodes: ClassVar[JobNodes]
    """Set in the subclass that `bind` makes."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = (AnyType("IMAGE"), "AUDIO", "LATENT", "MASK")
    RETURN_NAMES = COLLECTOR_SLOTS
    FUNCTION = "go_on"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: waits for a job of which this ComfyUI makes items."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs: the turns are lazy."""
        return {"required": {TURNS_INPUT: _TEXT}, "optional": dict(_PARTS), "hidden": {"unique_id": "UNIQUE_ID"}}

    def check_lazy_status(self, **inputs: Any) -> list[str]:
        """The next turn, until one has found that all is here, or none is left; ComfyUI asks again after each."""
        for part in PART_INPUTS:
            if part not in inputs or inputs[part] == OVER:
                return []
            if inputs[part] is None:
                return [part]
        return []

    async def go_on(self, turns: str, unique_id: str, **parts: Any) -> Any:
        """What the job gave, or turns anew.

        Raises:
            NodeOutsideJob: it stands in a prompt of the user's, or the job's prompt is over.
        """
        ours = _found(self.nodes, turns, unique_id)
        return await self.nodes.wait(ours.job, ours.node_id, ours.outputs)


_PARTS = {part: ("STRING", {"lazy": True, "forceInput": True}) for part in PART_INPUTS}


def _found(nodes: JobNodes, turns_id: str, node_id: str) -> Turns:
    turns = nodes.participation.turns.find(turns_id)
    if turns is None:
        raise NodeOutsideJob(node_id=node_id)
    return turns
