"""Nodes whose value is put into the prompt before an item runs: DistributedValue and DistributedModelName."""
from __future__ import annotations

import json
from typing import Any

from distributed_comfy.nodes.any_type import AnyType
from distributed_comfy.workflow.item_values import read_item_values


class DistributedValue:
    """Gives its default; planning replaces it by the literal of each item before that is queued."""

    RETURN_TYPES = (AnyType("*"),)
    RETURN_NAMES = ("value",)
    FUNCTION = "distribute"
    CATEGORY = "utils"
    DESCRIPTION = "Item 0 of a distributed job has the default, item 1, 2... what worker_values says for it."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs; the hidden ones keep saved prompts of ComfyUI-Distributed valid."""
        return {
            "required": {"default_value": ("STRING", {"default": ""}), "worker_values": ("STRING", {"default": "{}"})},
            "hidden": {"is_worker": ("BOOLEAN", {"default": False}), "worker_id": ("STRING", {"default": ""})},
        }

    def distribute(self, default_value: Any, worker_values: Any = "{}", is_worker: bool = False, worker_id: str = "") -> tuple[Any]:
        """The default in the type that ``worker_values`` names; this runs only where a prompt is not distributed."""
        return (read_item_values(default_value, worker_values).default,)


class DistributedModelName:
    """Hands a text (a model's name) on to whatever input needs it, and shows it.

    Planning puts a text that is known before the run into those inputs, so that workers without the model are found in time.
    """

    RETURN_TYPES = (AnyType("*"),)
    RETURN_NAMES = ("output",)
    FUNCTION = "show"
    CATEGORY = "utils"
    OUTPUT_NODE = True
    DESCRIPTION = "Names a model that this computer need not have: the text goes to the loaders of the workers."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {
            "required": {"text": ("STRING", {"default": ""})},
            "hidden": {"unique_id": "UNIQUE_ID", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def show(self, text: Any, unique_id: Any = None, extra_pnginfo: Any = None) -> dict[str, Any]:
        """The text, as output and for the editor to show; of a list one text each."""
        texts = [as_text(value) for value in (text if isinstance(text, list) else [text])]
        return {"ui": {"text": texts}, "result": (texts[0] if len(texts) == 1 else texts,)}


def as_text(value: Any) -> str:
    """A value as DistributedModelName shows it: texts as they are, numbers in decimal, anything else as JSON where it can be."""
    if isinstance(value, (str, int, float)):
        return str(value)
    return json.dumps(value, indent=4, default=str)
