"""The shipped example, smaller and with a few changes."""
from __future__ import annotations

import json
from typing import Any

from distributed_comfy.messages import Prompt
from tests.comfyui.comfy_process import PROJECT
from tests.prompts import out


def distributed(tail: Prompt | None = None, end: str = "8", *, seed: int = 100, side: int = 64, **sampler: Any) -> Prompt:
    """The example with nodes between its decoder and its collector.

    Args:
        tail: those nodes.
        end: the node that is collected.
        seed: of item 0.
        side: of the images, in pixels.
        sampler: inputs of the KSampler.
    """
    prompt: Prompt = json.loads((PROJECT / "examples" / "txt2img_tiny.json").read_text())
    prompt["5"]["inputs"] |= {"width": side, "height": side}
    prompt["6"]["inputs"]["seed"] = seed
    prompt["7"]["inputs"] |= {"steps": 2, **sampler}
    prompt["9"]["inputs"]["images"] = out(end)
    return {**prompt, **(tail or {})}


def plain_item(tail: Prompt | None = None, end: str = "8", *, seed: int, **sampler: Any) -> Prompt:
    """What plain ComfyUI runs for one item: no nodes of ours, and no output node."""
    prompt = distributed(tail, end, seed=seed, **sampler)
    prompt["7"]["inputs"]["seed"] = seed
    return {node_id: value for node_id, value in prompt.items() if node_id not in ("6", "9", "10")}
