"""Inputs of our own nodes that do not exist: engines would ignore them without a word, and with them what their user wanted."""
from __future__ import annotations

from collections.abc import Iterator

from distributed_comfy.config_file import nearest
from distributed_comfy.messages import Prompt
from distributed_comfy.nodes.registry import declared_inputs


def unknown_inputs(prompt: Prompt) -> Iterator[str]:
    """A sentence for each.

    Args:
        prompt: of the user.
    """
    for node_id, node in prompt.items():
        names = declared_inputs(node["class_type"])
        if names is None:
            continue
        for name in [name for name in node["inputs"] if name not in names]:
            near = nearest(name, names)
            meant = f"did you mean {near!r}?" if near else f"there are {', '.join(sorted(names))}"
            yield f"node {node_id} ({node['class_type']}) has no input {name!r}, so that is ignored; {meant}"
