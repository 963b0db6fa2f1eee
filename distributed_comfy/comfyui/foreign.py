"""Lets a prompt pass ComfyUI's validation that names what only workers have: a model file, or a node class.

Before ComfyUI validates, the value becomes a link to a node of ours that gives it, and a node of an unknown class becomes one of ours that
stands for it.  Both say in their inputs what they stand for, so ComfyUI's cache tells them apart as before; neither is meant to run.
Only what lies behind no output node but through a collector (or the upscale) is changed, and only where a live worker has it: anything
else ComfyUI refuses in its own words.
"""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from distributed_comfy.comfyui.accepted import job_nodes_of
from distributed_comfy.engine.catalogue import listed_choices
from distributed_comfy.engine.comfyui.choices import input_declarations, is_output_node, self_validated_inputs
from distributed_comfy.errors import OnlyWorkersHave
from distributed_comfy.messages import Capability, Prompt
from distributed_comfy.nodes.any_type import AnyType
from distributed_comfy.planning.requirements import normalise, offers
from distributed_comfy.workflow.graph import Graph, as_link

log = logging.getLogger(__name__)

VALUE_CLASS = "DistributedForeignValue"
NODE_CLASS = "DistributedForeignNode"
_OUTPUTS = 32
_TEXT = ("STRING", {"default": ""})


class DistributedForeignValue:
    """A value that only workers list."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = (AnyType("*"),)
    FUNCTION = "refuse"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: names a model that only workers have."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {"text": _TEXT}}

    def refuse(self, text: str) -> Any:
        """
        Raises:
            OnlyWorkersHave: always: it has come to run here.
        """
        raise OnlyWorkersHave(what=repr(text))


class DistributedForeignNode:
    """A node of a class that only workers have; its own inputs come with it, undeclared."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = (AnyType("*"),) * _OUTPUTS
    FUNCTION = "refuse"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: stands for a node that only workers have."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {"foreign_class": _TEXT}}

    def refuse(self, foreign_class: str, **inputs: Any) -> Any:
        """Raises as `DistributedForeignValue.refuse`."""
        raise OnlyWorkersHave(what=f"the node class {foreign_class}")


class ForeignValues:
    """A handler for prompts that ComfyUI is about to validate.

    Args:
        classes: ComfyUI's node classes, by name.
    """

    def __init__(self, classes: Mapping[str, Any]) -> None:
        self._classes = classes

    def missing(self, prompt: Prompt) -> dict[str, list[str]]:
        """Node -> its inputs with a value that is not listed here, or an empty text where its class is unknown."""
        return {node_id: lacks for node_id in self._behind_jobs(prompt) if (lacks := self._lacks(prompt[node_id]))}

    def replace(self, prompt: Prompt, live: Sequence[Capability]) -> Prompt:
        """The prompt as this ComfyUI can validate it; the same object where nothing has to be replaced.

        Args:
            prompt: as it was posted.
            live: the capabilities of the live workers; they matter only where something is `missing`.
        """
        missing = self.missing(prompt)
        if not missing:
            return prompt
        changed = dict(prompt)
        for node_id, lacks in missing.items():
            changed |= self._replaced(node_id, prompt[node_id], lacks, live)
        return changed

    def _behind_jobs(self, prompt: Prompt) -> set[str]:
        """Nodes that this ComfyUI runs only where it makes items itself."""
        outputs = [node_id for node_id, node in prompt.items() if is_output_node(self._classes.get(node["class_type"]))]
        jobs = job_nodes_of(prompt)
        outer = {node_id: {**node, "inputs": {}} if node_id in jobs else node for node_id, node in prompt.items()}
        return Graph(prompt).upstream(jobs) - Graph(outer).upstream(outputs)

    def _lacks(self, node: Mapping[str, Any]) -> list[str]:
        """Inputs with a value that is not listed here; empty text where the class is unknown."""
        node_class = self._classes.get(node["class_type"])
        if node_class is None:
            return [""]
        texts = {name: value for name, value in node["inputs"].items() if isinstance(value, str)}
        exempt = self_validated_inputs(node_class) if texts else None
        if exempt is None:
            return []
        declared = input_declarations(node_class)
        listed = {name: listed_choices(declared[name]) for name in texts if name in declared and name not in exempt}
        return [name for name, values in listed.items() if values is not None and texts[name] not in values]

    def _replaced(self, node_id: str, node: dict[str, Any], lacks: list[str], live: Sequence[Capability]) -> Prompt:
        class_type = str(node["class_type"])
        able = [one for one in live if class_type in one.node_classes]
        if lacks == [""]:
            return {node_id: {**node, "class_type": NODE_CLASS, "inputs": {**node["inputs"], "foreign_class": class_type}}} if able else {}
        found = [name for name in lacks if any(offers(one, class_type, name, normalise(node["inputs"][name])) for one in able)]
        inner = {f"{node_id}~{name}": {"class_type": VALUE_CLASS, "inputs": {"text": node["inputs"][name]}} for name in found}
        links = {name: [f"{node_id}~{name}", 0] for name in found}
        return {**inner, node_id: {**node, "inputs": {**node["inputs"], **links}}}


def foreign_in(running: Prompt) -> tuple[str, ...]:
    """What of a prompt only workers have, in words."""
    values = [node["inputs"].get("text") for node in running.values() if node["class_type"] == VALUE_CLASS]
    classes = [node["inputs"].get("foreign_class") for node in running.values() if node["class_type"] == NODE_CLASS]
    return (*(f"model {value!r}" for value in dict.fromkeys(values)), *(f"node class {name}" for name in dict.fromkeys(classes)))


def original_of(running: Prompt) -> Prompt:
    """The prompt before `ForeignValues.replace`; the same object where nothing was replaced."""
    if not any(node["class_type"] in (VALUE_CLASS, NODE_CLASS) for node in running.values()):
        return running
    texts = {node_id: node["inputs"].get("text") for node_id, node in running.items() if node["class_type"] == VALUE_CLASS}

    def before(node: dict[str, Any]) -> dict[str, Any]:
        inputs = dict(node["inputs"])
        class_type = inputs.pop("foreign_class", "") if node["class_type"] == NODE_CLASS else node["class_type"]
        links = {name: link for name, value in inputs.items() if (link := as_link(value)) and link.node_id in texts}
        return {**node, "class_type": class_type, "inputs": {**inputs, **{name: texts[link.node_id] for name, link in links.items()}}}

    return {node_id: before(node) for node_id, node in running.items() if node_id not in texts}


def restore_in_metadata(dynamic_prompt: Any) -> None:
    """Let nodes that write the prompt into their files see the user's."""
    running = dynamic_prompt.get_original_prompt
    dynamic_prompt.get_original_prompt = lambda self: original_of(running(self))
