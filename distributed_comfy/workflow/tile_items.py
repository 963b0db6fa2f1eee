"""The items of an upscale's tiles: the shared prompt, and the literals in which one tile differs from the others."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from distributed_comfy.messages import ItemSpec, Patch
from distributed_comfy.tile_stage import TileStage
from distributed_comfy.workflow.classes import CLAIM_INPUT, KEPT_MARK
from distributed_comfy.workflow.region import FRAME_INPUTS

SEED_VALUES = 2**64


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
    return str((int(stage.seed) + step) % SEED_VALUES)


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
