"""The cluster as the pack's internal node classes see it; a part of the pack that runs items in this ComfyUI stands behind it."""
from __future__ import annotations

from typing import Any

from distributed_comfy.errors import NodeOutsideJob
from distributed_comfy.nodes.context import NodeContext


class PackContext:
    """The `nodes.context.NodeContext` of the pack; refuses everything until it has `inner`."""

    def __init__(self) -> None:
        self.inner: NodeContext | None = None

    def capture(self, node_id: str, slot: str, values: list[Any]) -> None:
        """See `nodes.context.NodeContext.capture`."""
        self._behind(node_id).capture(node_id, slot, values)

    def supply(self, node_id: str, slot: str) -> list[Any]:
        """See `nodes.context.NodeContext.supply`."""
        return self._behind(node_id).supply(node_id, slot)

    def _behind(self, node_id: str) -> NodeContext:
        if self.inner is None:
            raise NodeOutsideJob(node_id=node_id)
        return self.inner
