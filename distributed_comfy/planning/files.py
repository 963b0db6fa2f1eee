"""Which files a prompt loads, so that they can be brought to the worker that runs it."""
from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from distributed_comfy.messages import Patch, Prompt
from distributed_comfy.planning.facts import ClassFacts


@dataclass(frozen=True)
class FileReference:
    """A file that a node names."""

    node_id: str
    input: str
    name: str
    """As in the prompt, without ComfyUI's note of the folder."""
    folder: str
    """``input``, ``output`` or ``temp``."""
    value: str = ""
    """The prompt's literal itself; items may differ in it."""


def find_files(prompt: Prompt, facts: ClassFacts, patches: Iterable[Patch] = ()) -> tuple[FileReference, ...]:
    """Every file that nodes of ``prompt`` load, in the prompt's order, then those that items have instead (``patches``)."""
    literals = [(node_id, name, value) for node_id, node in prompt.items() for name, value in node["inputs"].items()]
    literals += [(patch.node_id, patch.input, patch.value) for patch in patches]
    found = (
        _reference(node_id, name, value, folder)
        for node_id, name, value in literals
        if isinstance(value, str) and value and (folder := facts.file_folder(prompt[node_id]["class_type"], name))
    )
    return tuple(dict.fromkeys(found))


def _reference(node_id: str, name: str, value: str, folder: str) -> FileReference:
    noted = re.fullmatch(r"(.*) ?\[(input|output|temp)\]", value, re.DOTALL)  # "a.png [output]", as the editor's clipspace writes it
    if noted:
        return FileReference(node_id, name, noted[1].rstrip(), noted[2], value)
    return FileReference(node_id, name, value, folder, value)
