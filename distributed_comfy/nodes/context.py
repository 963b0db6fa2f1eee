"""What a node class may ask of the cluster while a prompt runs; its door (engine or node pack) provides it."""
from __future__ import annotations

from typing import Any, Protocol


class NodeContext(Protocol):
    """One per engine, shared by all node classes; valid only while a run is on."""

    def capture(self, node_id: str, slot: str, values: list[Any]) -> None:
        """Keep the values that reached a sink.

        Args:
            node_id: id of the sink node in the running prompt.
            slot: a slot of a collector, or ``value``.
            values: the list that the graph delivered (INPUT_IS_LIST), element by element.
        """

    def supply(self, node_id: str, slot: str) -> list[Any]:
        """The values that a source node stands for, as the graph would have delivered them."""
