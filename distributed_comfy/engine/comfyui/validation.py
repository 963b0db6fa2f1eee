"""ComfyUI's own validation of a prompt, in this process."""
from __future__ import annotations

import asyncio

from distributed_comfy.engine.catalogue import listed_choices, path_literals, spelled
from distributed_comfy.engine.comfyui.choices import input_declarations
from distributed_comfy.engine.comfyui.tree import ComfyTree
from distributed_comfy.engine.refusals import lacking, refusal_of, require_classes
from distributed_comfy.errors import ValidationRefused, WorkerLacks
from distributed_comfy.messages import Prompt


def check_prompt(tree: ComfyTree, prompt: Prompt, targets: tuple[str, ...], worker: str) -> None:
    """Refuse a prompt unless every target can run; values that ComfyUI converts are converted in place.

    ComfyUI calls a prompt valid when one of its outputs is, and drops the others; here all targets must be.

    Args:
        prompt: changed in place (numbers converted, path separators as on this system).
        worker: name of this worker, for the message.
    Raises:
        WorkerLacks: node classes or list values that are not on this worker, and nothing else.
        ValidationRefused: anything that is wrong on every worker.
    """
    require_classes(tree.nodes.NODE_CLASS_MAPPINGS, prompt, worker)
    spell_choices(tree, prompt)
    refusal = _refusal(tree, prompt, targets)
    if refusal is not None:  # perhaps only by what ComfyUI remembers of its folders
        tree.forget_listings()
        spell_choices(tree, prompt)
        refusal = _refusal(tree, prompt, targets)
    if refusal is None:
        return
    if lacks := lacking(refusal):
        raise WorkerLacks(worker=worker, lacks=", ".join(lacks))
    raise refusal


def _refusal(tree: ComfyTree, prompt: Prompt, targets: tuple[str, ...]) -> ValidationRefused | None:
    """What ComfyUI has against the targets, its words and its node errors."""
    answer = asyncio.run(tree.execution.validate_prompt("", prompt, list(targets)))
    _, error, good, node_errors = answer[:4]
    if set(targets) <= set(good):
        return None
    return refusal_of(error, node_errors, prompt, [node for node in targets if node not in good])


def spell_choices(tree: ComfyTree, prompt: Prompt) -> None:
    """Write model names as this system lists them: ``sub/a.safetensors`` is ``sub\\a.safetensors`` on Windows."""
    for node, name, value in path_literals(prompt):
        declared = input_declarations(tree.nodes.NODE_CLASS_MAPPINGS[node["class_type"]]).get(name)
        options = listed_choices(declared) if declared is not None else None
        if options is not None and value not in options:
            node["inputs"][name] = spelled(value, options)
