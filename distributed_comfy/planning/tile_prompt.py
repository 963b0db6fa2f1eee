"""What one tile runs in an upscale's place, as nodes of a prompt, and the item that each tile becomes."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from distributed_comfy.errors import PromptMalformed
from distributed_comfy.messages import ItemSpec, Patch, Prompt
from distributed_comfy.planning.facts import SEED_LIMIT
from distributed_comfy.planning.stage import sink, source
from distributed_comfy.planning.upscale_inputs import UpscaleInputs
from distributed_comfy.tile_stage import TileStage
from distributed_comfy.workflow.classes import CLAIM_INPUT, EDGE_SLOT, KEPT_MARK, TILE_CONDITIONING_CLASS, TILE_MODEL_CLASS
from distributed_comfy.workflow.region import FRAME_INPUTS, REGION_INPUTS

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


@dataclass(frozen=True)
class TileRow:
    """One tile of some frames, as the master's plan of the canvas has it; pixels of the canvas."""

    index: int
    """Of the item among the tiles, from 0."""
    step: int
    """Of the tile in the plan; the same for all its frames."""
    left: int
    top: int
    width: int
    height: int
    process_width: int
    """Of the crop that is sampled."""
    process_height: int
    denoise: float | None = None
    """Of this step; None: as the job says."""
    first_frame: int = 0
    frames: int = 0
    """0: all frames of the canvas."""


@dataclass(frozen=True)
class Canvas:
    """The image to upscale."""

    width: int
    height: int
    frames: int


def tile_specs(
    stage: TileStage, first_tile: int, canvas: Canvas, rows: Iterable[TileRow], kept: Mapping[str, str] | None = None
) -> Iterator[ItemSpec]:
    """The items of tiles, in the order of ``rows``.

    Args:
        stage: of the job.
        first_tile: `JobRecord.first_tile`.
        canvas: its size in pixels and frames.
        rows: any of the job's tiles.
        kept: `TileConstant.source_id` -> a text that is another for another value, such as a blob id: a source stays in the engine's
            cache from tile to tile while it is the same. One that is missing is read again in each tile.
    """
    texts, sources = kept or {}, dict.fromkeys(constant.source_id for constant in stage.constants)
    fixed = tuple(Patch(source_id, CLAIM_INPUT, KEPT_MARK + texts[source_id]) for source_id in sources if source_id in texts)
    for row in rows:
        seed = _seed(stage, row.step)
        yield ItemSpec(
            index=first_tile + row.index,
            kind="tile",
            prompt_hash=stage.prompt_hash,
            targets=stage.targets,
            patches=(*_region_patches(stage, canvas, row), *_sampler_patches(stage, row, seed), *fixed),
            seed=seed,
        )


def _seed(stage: TileStage, step: int) -> str:
    """``offset`` goes on at 0 after the last seed."""
    if stage.geometry.tile_seeds == "same" or not stage.seed:
        return stage.seed
    return str((int(stage.seed) + step) % (SEED_LIMIT + 1))


def _region_patches(stage: TileStage, canvas: Canvas, row: TileRow) -> Iterator[Patch]:
    whole = not row.frames or row.frames == canvas.frames
    region = {
        "canvas_width": canvas.width, "canvas_height": canvas.height, "left": row.left, "top": row.top, "width": row.width,
        "height": row.height, "process_width": row.process_width, "process_height": row.process_height,
    }  # fmt: skip
    frames = {} if whole else dict(zip(FRAME_INPUTS, (canvas.frames, row.first_frame, row.frames), strict=True))
    for node_id in stage.regions:
        yield from (Patch(node_id, name, value) for name, value in {**region, **frames}.items())


def _sampler_patches(stage: TileStage, row: TileRow, seed: str) -> Iterator[Patch]:
    if seed and seed != stage.seed:
        yield Patch(stage.sampler, "seed", int(seed))
    if row.denoise is not None and row.denoise != stage.geometry.denoise:
        yield Patch(stage.sampler, "denoise", row.denoise)
