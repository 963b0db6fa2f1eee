"""Which files a prompt loads, so that they can be brought to the worker that runs it."""
from __future__ import annotations

import re
from dataclasses import dataclass

from distributed_comfy.messages import Prompt
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


def find_files(prompt: Prompt, facts: ClassFacts) -> tuple[FileReference, ...]:
    """Every file that nodes of ``prompt`` load, in the prompt's order."""
    return tuple(
        _reference(node_id, name, value, folder)
        for node_id, node in prompt.items()
        for name, value in node["inputs"].items()
        if isinstance(value, str) and value and (folder := facts.file_folder(node["class_type"], name))
    )


def _reference(node_id: str, name: str, value: str, folder: str) -> FileReference:
    noted = re.fullmatch(r"(.*) ?\[(input|output|temp)\]", value, re.DOTALL)  # "a.png [output]", as the editor's clipspace writes it
    if noted:
        return FileReference(node_id, name, noted[1].rstrip(), noted[2])
    return FileReference(node_id, name, value, folder)
