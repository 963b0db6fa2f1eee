"""Models stay loaded over the last stage of a job, whose prompt does not name them."""
from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from distributed_comfy.engine.comfyui.choices import is_output_node
from distributed_comfy.messages import Prompt, RunRequest


class WarmNodes:
    """The nodes of the last item, to be named again beside those of a last stage.

    ComfyUI forgets the results of every node that a prompt does not name, loaded models among them.  A last stage names collectors and
    what is behind them, so after each job its worker would read all models from disk again.  Nodes that no target needs are not
    executed, only remembered.
    """

    def __init__(self, classes: Mapping[str, Any]) -> None:
        """Args:
        classes: ComfyUI's ``NODE_CLASS_MAPPINGS``.
        """
        self._classes = classes
        self._nodes: Prompt = {}

    def note(self, request: RunRequest, prompt: Prompt, shown: Collection[str]) -> None:
        """An item ran.

        Args:
            request: a last stage is not noted.
            prompt: as it was executed, with the marks that ComfyUI left in it: they are part of what it knows the results by.
            shown: nodes with a ui result; they are left out, for it would appear again among those of the last stage.
        """
        if request.kind != "last":
            self._nodes = {
                node_id: node
                for node_id, node in prompt.items()
                if node_id not in shown and not is_output_node(self._classes[node["class_type"]])
            }

    def beside(self, request: RunRequest, prompt: Prompt) -> Prompt:
        """``prompt``, for a last stage with the nodes of the item before it."""
        return {**self._nodes, **prompt} if request.kind == "last" else prompt
