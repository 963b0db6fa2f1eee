"""What one tile runs in an upscale's place, as nodes of a prompt; `workflow.tile_items` makes the items of tiles."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distributed_comfy.errors import PromptMalformed
from distributed_comfy.messages import Prompt
from distributed_comfy.planning.stage import sink, source
from distributed_comfy.planning.upscale_inputs import UpscaleInputs
from distributed_comfy.workflow.classes import EDGE_SLOT, TILE_CONDITIONING_CLASS, TILE_MODEL_CLASS
from distributed_comfy.workflow.region import REGION_INPUTS

_TILED_DECODE = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
"""The defaults of ComfyUI's VAEDecodeTiled."""
_PARTS = ("pixels", "model", "positive", "negative", "encode", "sample", "decode")


@dataclass(frozen=True)
class TileNodes:
    """Ids of the nodes that take the place of upscale ``node_id``; the sink of the result has that id itself."""

    node_id: str

    def id_of(self, part: str) -> str:
        """Id of one of the parts."""
        return f"{self.node_id}~{part}"

    @property
    def pixels(self) -> str:
        """The source of the crop."""
        return self.id_of("pixels")

    @property
    def regions(self) -> tuple[str, ...]:
        """The nodes that are told where the tile lies."""
        return tuple(self.id_of(part) for part in ("model", "positive", "negative"))

    @property
    def sampler(self) -> str:
        """The sampler."""
        return self.id_of("sample")

    @property
    def inner(self) -> frozenset[str]:
        """All of them but the sink."""
        return frozenset(self.id_of(part) for part in _PARTS)


def tile_nodes(prompt: Prompt, node_id: str, inputs: UpscaleInputs) -> Prompt:
    """The nodes of a tile, with neutral literals where tiles differ; they link to the user's nodes.

    Raises:
        PromptMalformed: a node of the prompt has one of their ids.
    """
    ids = TileNodes(node_id)
    for taken in sorted(ids.inner & set(prompt)):
        raise PromptMalformed(source="the prompt", reason=f"the node id {taken} is needed for the tiles of upscale {node_id}")
    links = {name: list(link) for name, link in inputs.links.items()}
    region = dict.fromkeys(REGION_INPUTS, 0)
    model, positive, negative = ids.regions
    latent, decode = ids.id_of("encode"), ids.id_of("decode")
    prepared = {"model": [model, 0], "positive": [positive, 0], "negative": [negative, 0], "latent_image": [latent, 0]}
    decoded = {"samples": [ids.sampler, 0], "vae": links["vae"], **(_TILED_DECODE if inputs.tiled_decode else {})}
    return {
        ids.pixels: source([EDGE_SLOT]),
        model: _node(TILE_MODEL_CLASS, {"model": links["model"], **region}),
        positive: _node(TILE_CONDITIONING_CLASS, {"conditioning": links["positive"], **region}),
        negative: _node(TILE_CONDITIONING_CLASS, {"conditioning": links["negative"], **region}),
        latent: _node("VAEEncode", {"pixels": [ids.pixels, 0], "vae": links["vae"]}),
        ids.sampler: _node("KSampler", {**prepared, **inputs.sampling}),
        decode: _node("VAEDecodeTiled" if inputs.tiled_decode else "VAEDecode", decoded),
        node_id: sink({"images": [decode, 0]}),
    }


def _node(class_type: str, inputs: Mapping[str, object]) -> dict[str, object]:
    return {"class_type": class_type, "inputs": dict(inputs)}
