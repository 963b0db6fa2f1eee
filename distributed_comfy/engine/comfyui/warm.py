"""Models stay loaded while items and last stages of a job take turns on a worker, although neither prompt names the other's nodes."""
from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from distributed_comfy.engine.comfyui.choices import is_output_node
from distributed_comfy.messages import Prompt, RunRequest
from distributed_comfy.workflow.classes import SOURCE_CLASS
from distributed_comfy.workflow.graph import Graph


class WarmNodes:
    """The nodes of the last item, named again beside those of a last stage, and the other way round.

    ComfyUI forgets the results of every node that a prompt does not name, loaded models among them, so a worker would read all models
    from disk again after each change.  Nodes that no target needs are not executed, only remembered.  One executor for both, because a
    model that both stages use must be in memory once.
    """

    def __init__(self, classes: Mapping[str, Any]) -> None:
        """Args:
        classes: ComfyUI's ``NODE_CLASS_MAPPINGS``.
        """
        self._classes = classes
        self._item: Prompt = {}
        self._last_stage: Prompt = {}
        self._last_stage_of: dict[str, str] = {}

    def note(self, request: RunRequest, prompt: Prompt, shown: Collection[str]) -> None:
        """A prompt ran.

        Args:
            request: what was asked for.
            prompt: as it was executed, with the marks that ComfyUI left in it: they are part of what it knows the results by.
            shown: nodes with a ui result; they are left out, for it would appear again among those of the other stage.
        """
        graph = Graph(prompt)
        new_each_time = graph.downstream(graph.of_class(SOURCE_CLASS))
        kept = {
            node_id: prompt[node_id]
            for node_id in request.prompt
            if node_id not in shown and node_id not in new_each_time and not is_output_node(self._classes[graph.class_of(node_id)])
        }
        if request.kind == "last":
            self._last_stage, self._last_stage_of = kept, _family(request)
        else:
            self._item = kept

    def beside(self, request: RunRequest, prompt: Prompt) -> Prompt:
        """``prompt`` with the nodes of the other stage; its own win where both have one of the same id."""
        if request.kind == "last":
            return {**self._item, **prompt}
        if self._last_stage_of != _family(request):
            self._last_stage = {}  # of another workflow: it may not come back, and its models take memory
        return {**self._last_stage, **prompt}


def _family(request: RunRequest) -> dict[str, str]:
    """The user's workflow, whatever its seeds and texts."""
    return {node_id: node["class_type"] for node_id, node in request.original_prompt.items()}
