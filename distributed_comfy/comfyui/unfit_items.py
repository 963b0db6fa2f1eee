"""Which items of a job this ComfyUI cannot make although it accepted the prompt: those with a value that only workers list.

ComfyUI saw a DistributedValue, whose values are texts like any other, where an item has the name of a model.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.master_job import MasterJob
from distributed_comfy.comfyui.running_job import RunningJob
from distributed_comfy.engine.catalogue import listed_choices
from distributed_comfy.engine.comfyui.choices import input_declarations, self_validated_inputs
from distributed_comfy.messages import Patch, Prompt
from distributed_comfy.planning.requirements import is_model_name
from distributed_comfy.workflow.graph import as_link

Texts = dict[tuple[str, str], str]
"""Node and input -> what stands there."""


class UnfitItems:
    """Of the jobs that nodes of this ComfyUI wait for; they are left to workers, and the others are made here.

    Args:
        host: this ComfyUI.
    """

    def __init__(self, host: ComfyHost) -> None:
        self._host = host
        self._found: dict[str, dict[int, str]] = {}
        """Job -> item -> why it cannot run here: ``lacks model 'a.safetensors'``."""

    def of(self, job: MasterJob, running: RunningJob) -> dict[int, str]:
        """Those that are known, with why; the items of the plan are looked at once."""
        job_id = running.record.job_id
        if job_id not in self._found:
            self._found.setdefault(job_id, self._planned(job, running))
        return self._found[job_id]

    def _planned(self, job: MasterJob, running: RunningJob) -> dict[int, str]:
        plan = running.plan
        filled = {prompt_hash: _filled(job.accepted.planned, prompt) for prompt_hash, prompt in plan.prompts.items()}
        lacks = lru_cache(maxsize=None)(self._lacks)  # ComfyUI may look into folders, and many items are alike
        unfit = {}
        for spec in plan.items:
            texts = filled[spec.prompt_hash] | _patched(spec.patches)
            if why := _first(plan.prompts[spec.prompt_hash], texts, lacks):
                unfit[spec.index] = why
        return unfit

    def why(self, job: MasterJob, prompt: Prompt, patches: Sequence[Patch]) -> str:
        """Why one item cannot run here, if so.

        Args:
            job: its own.
            prompt: its stage's, with its patches.
            patches: what it alone has.
        """
        return _first(prompt, _filled(job.accepted.planned, prompt) | _patched(patches), self._lacks)

    def _lacks(self, class_type: str, input_name: str, text: str) -> str:
        node_class = self._host.nodes.NODE_CLASS_MAPPINGS.get(class_type)
        declared, exempt = input_declarations(node_class).get(input_name), self_validated_inputs(node_class)
        listed = None if declared is None or exempt is None or input_name in exempt else listed_choices(declared)
        return "" if listed is None or text in listed else f"lacks {'model' if is_model_name(text) else 'value'} {text!r}"

    def add(self, job: MasterJob, running: RunningJob, index: int, why: str) -> None:
        """One more that cannot run here."""
        self.of(job, running)[index] = why

    def left(self, job: MasterJob, running: RunningJob) -> str:
        """Why this ComfyUI cannot make items that are not here yet, in words; empty where there are none."""
        unfit = self.of(job, running)
        here = set(running.spool.items()) if unfit else set()
        left = {index: why for index, why in sorted(unfit.items()) if index not in here}
        if not left:
            return ""
        items = f"item {next(iter(left))}" if len(left) == 1 else f"{len(left)} items"
        return f"this ComfyUI {', '.join(dict.fromkeys(left.values()))} ({items})"

    def forget(self, job_id: str) -> None:
        """The job is over."""
        self._found.pop(job_id, None)


def _filled(planned: Prompt, prompt: Prompt) -> Texts:
    """Texts of a stage's prompt where the user's has a link: ComfyUI did not see them when it accepted that."""
    return {
        (node_id, name): value
        for node_id, node in prompt.items()
        for name, value in node["inputs"].items()
        if isinstance(value, str) and node_id in planned and as_link(planned[node_id]["inputs"].get(name))
    }


def _patched(patches: Sequence[Patch]) -> Texts:
    return {(patch.node_id, patch.input): patch.value for patch in patches if isinstance(patch.value, str)}


def _first(prompt: Prompt, texts: Texts, lacks: Callable[[str, str, str], str]) -> str:
    whys = (lacks(prompt[node_id]["class_type"], name, text) for (node_id, name), text in texts.items())
    return next((why for why in whys if why), "")
