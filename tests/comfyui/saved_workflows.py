"""Workflows as ComfyUI-Distributed's users have saved them: files of the editor, written by hand, in every variant that is about."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Workflow = dict[str, Any]
Link = tuple[int, int, int, int]
"""Node and slot that it comes from, node and slot that it goes to."""

UPSCALE_VALUES: list[Any] = [
    123456789, "fixed", 7, 3.5, "euler", "karras", 0.35, 768, 640, 48, 16, False, True,
]  # fmt: skip
"""seed, control, steps, cfg, sampler, scheduler, denoise, tile width, tile height, padding, mask blur, force uniform, tiled decode."""
UPSCALE_INPUTS = {
    "seed": 123456789, "steps": 7, "cfg": 3.5, "sampler_name": "euler", "scheduler": "karras", "denoise": 0.35, "tile_width": 768,
    "tile_height": 640, "padding": 48, "mask_blur": 16, "force_uniform_tiles": False, "tiled_decode": True,
}  # fmt: skip
"""What these mean."""
OLD_COLLECTOR: dict[str, Any] = {"inputs": ["images IMAGE"], "outputs": ["IMAGE IMAGE"]}
"""One input, one output of another name, and no values."""


def saved_node(
    number: int, kind: str, *, values: Any = ..., inputs: Sequence[str] = (), outputs: Sequence[str] = (), mode: int = 0
) -> Workflow:
    """A node of a file.

    Args:
        number: its id.
        kind: its class.
        values: ``widgets_values``; left out where it is not given.
        inputs: ``name TYPE``; links are put in by `workflow`.
        outputs: ``name TYPE``.
        mode: 4: bypassed.
    """
    slots_in = [{"name": name, "type": type_, "link": None} for name, type_ in map(str.split, inputs)]
    slots_out = [
        {"name": name, "type": type_, "links": None, "slot_index": slot} for slot, (name, type_) in enumerate(map(str.split, outputs))
    ]
    return {
        "id": number, "type": kind, "pos": [100 + 320 * (number % 4), 100 + 300 * (number // 4)], "size": [300, 200], "flags": {},
        "order": number, "mode": mode, "inputs": slots_in, "outputs": slots_out, "properties": {"Node name for S&R": kind},
        **({} if values is ... else {"widgets_values": values}),
    }  # fmt: skip


def workflow(nodes: Sequence[Workflow], links: Sequence[Link]) -> Workflow:
    """A file with these nodes; a link has its number by its place, and the type of the output that it comes from."""
    by_id = {node["id"]: node for node in nodes}
    saved = []
    for number, (source, slot, target, place) in enumerate(links, 1):
        found = by_id[source]["outputs"][slot]
        found["links"] = [*(found["links"] or []), number]
        by_id[target]["inputs"][place]["link"] = number
        saved.append([number, source, slot, target, place, found["type"]])
    return {
        "last_node_id": max(by_id), "last_link_id": len(saved), "nodes": list(nodes), "links": saved, "groups": [], "config": {},
        "extra": {}, "version": 0.4,
    }  # fmt: skip


def collected(collector: Mapping[str, Any], *, divided: int = 0) -> Workflow:
    """Pictures into a collector, and from there into a preview.

    Args:
        collector: arguments of its `saved_node`.
        divided: a divider of so many parts stands behind it, with a preview at its last output.
    """
    nodes = [
        saved_node(1, "EmptyImage", values=[16, 16, 4, 255], outputs=["IMAGE IMAGE"]),
        saved_node(2, "DistributedCollector", **collector),
        saved_node(3, "PreviewImage", inputs=["images IMAGE"]),
    ]
    links: list[Link] = [(1, 0, 2, 0)]
    if divided:
        outputs = [f"batch_{part} IMAGE" for part in range(1, 11)]
        nodes.append(saved_node(4, "ImageBatchDivider", values=[divided], inputs=["images IMAGE"], outputs=outputs))
        links += [(2, 0, 4, 0), (4, divided - 1, 3, 0)]
    else:
        links.append((2, 0, 3, 0))
    return workflow(nodes, links)


def sampled(seed_values: Sequence[Any]) -> Workflow:
    """The shape of the txt2img example with the tiny model: a seed in front of the sampler, a collector behind the decoder."""
    nodes = [
        saved_node(1, "UNETLoader", values=["tiny_mmdit.safetensors", "default"], outputs=["MODEL MODEL"]),
        saved_node(2, "TinyConditioning", values=["a cat"], outputs=["CONDITIONING CONDITIONING"]),
        saved_node(3, "VAELoader", values=["tiny_taesd16.safetensors"], outputs=["VAE VAE"]),
        saved_node(4, "EmptySD3LatentImage", values=[64, 64, 2], outputs=["LATENT LATENT"]),
        saved_node(5, "DistributedSeed", values=list(seed_values), outputs=["seed INT"]),
        saved_node(
            6, "KSampler", values=[0, "randomize", 2, 3.0, "euler", "simple", 1.0], outputs=["LATENT LATENT"],
            inputs=["model MODEL", "positive CONDITIONING", "negative CONDITIONING", "latent_image LATENT", "seed INT"],
        ),
        saved_node(7, "VAEDecode", inputs=["samples LATENT", "vae VAE"], outputs=["IMAGE IMAGE"]),
        saved_node(8, "DistributedCollector", **OLD_COLLECTOR),
        saved_node(9, "PreviewImage", inputs=["images IMAGE"]),
    ]  # fmt: skip
    nodes[5]["inputs"][4]["widget"] = {"name": "seed"}
    links: list[Link] = [
        (1, 0, 6, 0), (2, 0, 6, 1), (2, 0, 6, 2), (4, 0, 6, 3), (5, 0, 6, 4), (6, 0, 7, 0), (3, 0, 7, 1), (7, 0, 8, 0), (8, 0, 9, 0),
    ]  # fmt: skip
    return workflow(nodes, links)


def upscaled(values: Sequence[Any]) -> Workflow:
    """The shape of the upscale example, with a bypassed node and a reroute in the way."""
    nodes = [
        saved_node(1, "EmptyImage", values=[64, 64, 1, 255], outputs=["IMAGE IMAGE"]),
        saved_node(2, "ImageInvert", inputs=["image IMAGE"], outputs=["IMAGE IMAGE"], mode=4),
        saved_node(3, "CheckpointLoaderSimple", values=["tiny.safetensors"], outputs=["MODEL MODEL", "CLIP CLIP", "VAE VAE"]),
        saved_node(4, "CLIPTextEncode", values=["a cat"], inputs=["clip CLIP"], outputs=["CONDITIONING CONDITIONING"]),
        saved_node(
            5, "UltimateSDUpscaleDistributed", values=list(values), outputs=["IMAGE IMAGE"],
            inputs=["upscaled_image IMAGE", "model MODEL", "positive CONDITIONING", "negative CONDITIONING", "vae VAE"],
        ),
        saved_node(6, "PreviewImage", inputs=["images IMAGE"]),
        saved_node(7, "Reroute", inputs=["_ *"], outputs=["_ IMAGE"]),
    ]  # fmt: skip
    links: list[Link] = [
        (1, 0, 2, 0), (2, 0, 5, 0), (3, 0, 5, 1), (4, 0, 5, 2), (4, 0, 5, 3), (3, 2, 5, 4), (5, 0, 7, 0), (7, 0, 6, 0), (3, 1, 4, 0),
    ]  # fmt: skip
    return workflow(nodes, links)


def valued(values: Sequence[Any]) -> Workflow:
    """A value for each item at a sampler's number of steps, as text into a name."""
    nodes = [
        saved_node(1, "DistributedValue", values=list(values), outputs=["value *"]),
        saved_node(2, "DistributedModelName", values=[""], inputs=["text STRING"], outputs=["output *"]),
    ]
    nodes[1]["inputs"][0]["widget"] = {"name": "text"}
    return workflow(nodes, [(1, 0, 2, 0)])


def chosen(values: Sequence[Any]) -> Workflow:
    """A value for each item at a list of choices."""
    nodes = [
        saved_node(1, "DistributedValue", values=list(values), outputs=["value *"]),
        saved_node(
            2, "KSampler", values=[0, "fixed", 2, 3.0, "euler", "simple", 1.0], outputs=["LATENT LATENT"],
            inputs=["model MODEL", "positive CONDITIONING", "negative CONDITIONING", "latent_image LATENT", "sampler_name COMBO"],
        ),
    ]  # fmt: skip
    nodes[1]["inputs"][4]["widget"] = {"name": "sampler_name"}
    return workflow(nodes, [(1, 0, 2, 4)])
