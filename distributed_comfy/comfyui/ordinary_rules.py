"""Which prompts may run on a worker instead of in this ComfyUI, and what a worker must have for them."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.messages import Capability, Requirement
from distributed_comfy.orchestrator.input_files import InputFolders
from distributed_comfy.planning.plan import PlanOptions, plan_job
from distributed_comfy.workflow.classes import OWN_CLASSES
from distributed_comfy.workflow.graph import Graph
from distributed_comfy.workflow.parse import ParsedPrompt, parse_prompt

ENGINE = "comfyui"
"""The built-in engine draws pictures of its own, and engine `attach` does not pass on what ComfyUI says."""
HERE_ONLY = frozenset(
    {
        "SaveImageWebsocket",
        "CheckpointSave", "CLIPSave", "VAESave", "ModelSave", "ImageOnlyCheckpointSave", "LoraSave", "SaveLoRANode", "SaveLoRA",
    }
)  # fmt: skip
"""The first sends its images to the browser as previews, bit for bit; the others write models, which are for this ComfyUI's folders."""
_CREDENTIALS = frozenset({"AUTH_TOKEN_COMFY_ORG", "API_KEY_COMFY_ORG"})


@dataclass(frozen=True)
class Suitable:
    """A prompt that a worker may run."""

    requirement: Requirement


def judge(
    prompt: Mapping[str, Any],
    targets: Sequence[str],
    classes: Mapping[str, Any],
    folders: Mapping[str, Path],
    capabilities: Sequence[Capability],
) -> Suitable | str:
    """Whether a prompt may run on a worker, or in words why it stays.

    Args:
        prompt: the graph, as ComfyUI validated it.
        targets: the output nodes to run.
        classes: ComfyUI's ``NODE_CLASS_MAPPINGS``.
        folders: ComfyUI's ``input``, ``output`` and ``temp``.
        capabilities: of the workers that there are now.
    """
    try:
        parsed = parse_prompt({"prompt": dict(prompt)})
        graph = Graph(Graph(parsed.prompt).prune(list(targets)))
        for node_id in graph.prompt:
            if reason := _why_here(graph.class_of(node_id), classes):
                return reason
        return _requirement(parsed, targets, folders, capabilities)
    except DistributedComfyError as error:
        return str(error)


def _requirement(
    parsed: ParsedPrompt, targets: Sequence[str], folders: Mapping[str, Path], capabilities: Sequence[Capability]
) -> Suitable | str:
    plan = plan_job(parsed, PlanOptions(engine=ENGINE, outputs=tuple(targets)), capabilities)
    if len(plan.items) != 1 or plan.items[0].kind != "whole":
        return "it is more than one piece of work"
    places = InputFolders.of_comfyui(folders)
    for reference in plan.input_files:
        places.find(reference)
    return Suitable(plan.requirement)


def _why_here(class_type: str, classes: Mapping[str, Any]) -> str:
    if class_type in OWN_CLASSES:
        return f"{class_type} makes a job of its own of it"
    if class_type in HERE_ONLY:
        return f"what {class_type} makes belongs to this ComfyUI"
    found = classes.get(class_type)
    if found is None:
        return f"this ComfyUI has no {class_type}"
    if getattr(found, "API_NODE", False) or _takes_credentials(found):
        return f"{class_type} may use the account of this ComfyUI's user"
    return ""


def _takes_credentials(found: Any) -> bool:
    """Whether ComfyUI hands the user's account to the node; no worker gets that."""
    try:
        declared = found.INPUT_TYPES().get("hidden") or {}
    except Exception:  # noqa: BLE001 - whatever a class of anybody's raises
        return True
    return any(str(value).rsplit(".", 1)[-1].upper() in _CREDENTIALS for value in declared.values())
