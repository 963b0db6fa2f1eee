"""What the tiles of an item run in an upscale's place, as nodes of a prompt; `workflow.tile_items` makes the items.

Crops, places and what else differs from tile to tile are lists, and the engine runs a node once for each element of its lists.  So the
tiles of an item run one after the other, each as it would alone.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed_comfy.errors import PromptMalformed
from distributed_comfy.messages import Prompt
from distributed_comfy.planning.stage import sink, source
from distributed_comfy.planning.upscale_inputs import IMAGE_INPUT, UpscaleInputs
from distributed_comfy.workflow.classes import (
    EDGE_SLOT,
    TILE_CONDITIONING_CLASS,
    TILE_IMAGE_CLASS,
    TILE_INPUT_NAMES,
    TILE_INPUTS_CLASS,
    TILE_LATENT_CLASS,
    TILE_MODEL_CLASS,
    TILE_PIXELS_CLASS,
    TILE_REGIONS_CLASS,
    TILES_INPUT,
)
from distributed_comfy.workflow.graph import as_link

_TILED_DECODE = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
"""The defaults of ComfyUI's VAEDecodeTiled."""
_PARTS = ("pixels", "regions", "given", "filled", "model", "positive", "negative", "encode", "latent", "sample", "decode", "cut")


@dataclass(frozen=True)
class TileNodes:
    """Ids of the nodes that take the place of upscale ``node_id``; the sink of the result has that id itself."""

    node_id: str

    def id_of(self, part: str) -> str:
        """Id of one of the parts."""
        return f"{self.node_id}~{part}"

    @property
    def pixels(self) -> str:
        """The source of the crops."""
        return self.id_of("pixels")

    @property
    def regions(self) -> str:
        """The node that is told of the tiles."""
        return self.id_of("regions")

    @property
    def inner(self) -> frozenset[str]:
        """All of them but the sink."""
        return frozenset(self.id_of(part) for part in _PARTS)


def tile_nodes(prompt: Prompt, node_id: str, inputs: UpscaleInputs) -> Prompt:
    """The nodes of tiles, with no literal yet where items differ; they link to the user's nodes.

    Raises:
        PromptMalformed: a node of the prompt has one of their ids.
    """
    ids = TileNodes(node_id)
    for taken in sorted(ids.inner & set(prompt)):
        raise PromptMalformed(source="the prompt", reason=f"the node id {taken} is needed for the tiles of upscale {node_id}")
    pixels, regions, given, filled, model, positive, negative, encode, latent, sample, decode, cut = map(ids.id_of, _PARTS)
    links, literals = _given(inputs)
    user = {name: [given, TILE_INPUT_NAMES.index(name)] for name in links}
    region, sampling = [filled, 1], {**literals, **{name: user[name] for name in inputs.sampling if name in user}}
    own = {"seed": [regions, 1], "denoise": [regions, 2]}
    prepared = {"model": [model, 0], "positive": [positive, 0], "negative": [negative, 0], "latent_image": [latent, 0]}
    decoded = {"samples": [sample, 0], "vae": user["vae"], **(_TILED_DECODE if inputs.tiled_decode else {})}
    return {
        pixels: source([EDGE_SLOT]),
        regions: _node(TILE_REGIONS_CLASS, {TILES_INPUT: "", **{name: sampling[name] for name in own}}),
        given: _node(TILE_INPUTS_CLASS, links),
        filled: _node(TILE_PIXELS_CLASS, {"crop": [pixels, 0], "region": [regions, 0], "vae": user["vae"]}),
        model: _node(TILE_MODEL_CLASS, {"model": user["model"], "region": region}),
        positive: _node(TILE_CONDITIONING_CLASS, {"conditioning": user["positive"], "region": region}),
        negative: _node(TILE_CONDITIONING_CLASS, {"conditioning": user["negative"], "region": region}),
        encode: _node("VAEEncode", {"pixels": [filled, 0], "vae": user["vae"]}),
        latent: _node(TILE_LATENT_CLASS, {"latent": [encode, 0], "region": region}),
        sample: _node("KSampler", {**prepared, **sampling, **own}),
        decode: _node("VAEDecodeTiled" if inputs.tiled_decode else "VAEDecode", decoded),
        cut: _node(TILE_IMAGE_CLASS, {"image": [decode, 0], "crop": [pixels, 0], "pixels": [filled, 0]}),
        node_id: sink({"images": [cut, 0]}),
    }


def _given(inputs: UpscaleInputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """What nodes of the user give to tiles, and what is typed in."""
    links = {name: list(link) for name, link in inputs.links.items() if name != IMAGE_INPUT}
    links |= {name: value for name, value in inputs.sampling.items() if as_link(value)}
    return links, {name: value for name, value in inputs.sampling.items() if name not in links}


def _node(class_type: str, inputs: Mapping[str, object]) -> dict[str, object]:
    return {"class_type": class_type, "inputs": dict(inputs)}
