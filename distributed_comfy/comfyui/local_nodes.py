"""The two internal nodes of an item that runs in the master's ComfyUI: one captures, one ends the item and goes on waiting."""
from __future__ import annotations

from typing import Any, ClassVar

from distributed_comfy.comfyui.expansion import AFTER_INPUT, SINK_INPUT
from distributed_comfy.comfyui.master_nodes import JobNodes
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
    """Hands the item in, and gives what the node that waits for the job gives: by the next item, or when all are here."""

    nodes: ClassVar[JobNodes]
    """Set in the subclass that `bind` makes."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = (AnyType("IMAGE"), "AUDIO", "LATENT", "MASK")
    RETURN_NAMES = COLLECTOR_SLOTS
    FUNCTION = "go_on"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: ends an item of a job."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {CLAIM_INPUT: _TEXT, AFTER_INPUT: _ORDER}, "hidden": {"unique_id": "UNIQUE_ID"}}

    async def go_on(self, claim_id: str, after: Any, unique_id: str) -> Any:
        """See the class.

        Raises:
            NodeOutsideJob: it stands in a prompt of the user's, or the job's prompt is over.
        """
        run = await self.nodes.unless_interrupted(self.nodes.participation.finish, claim_id)
        if run is None:
            raise NodeOutsideJob(node_id=unique_id)
        return await self.nodes.wait(run.job, run.node_id, run.outputs)
