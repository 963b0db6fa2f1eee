"""The items of an upscale's tiles: the shared prompt, and the literal in which one item differs from the others."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from distributed_comfy.messages import ItemSpec, Patch
from distributed_comfy.tile_stage import TileStage
from distributed_comfy.workflow.classes import CLAIM_INPUT, KEPT_MARK, TILES_INPUT
from distributed_comfy.workflow.region import Region, TileTask, tasks_text

SEED_VALUES = 2**64


@dataclass(frozen=True)
class TileRow:
    """One tile, as the master's plan of the canvas has it; pixels of the canvas."""

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


@dataclass(frozen=True)
class TileItem:
    """Tiles of one size of work, for some frames, that one worker makes in one go."""

    index: int
    """Among the items of tiles, from 0."""
    rows: tuple[TileRow, ...]
    """At least one; they run in this order, each by itself."""
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
    stage: TileStage, first_tile: int, canvas: Canvas, items: Iterable[TileItem], kept: Mapping[str, str] | None = None
) -> Iterator[ItemSpec]:
    """The items of tiles, in the order of ``items``.

    Args:
        stage: of the job.
        first_tile: `JobRecord.first_tile`.
        canvas: its size in pixels and frames.
        items: any of the job's.
        kept: `TileConstant.source_id` -> a text that is another for another value, such as a blob id: a source stays in the engine's
            cache from tile to tile while it is the same. One that is missing is read again in each item.
    """
    texts, sources = kept or {}, dict.fromkeys(constant.source_id for constant in stage.constants)
    fixed = tuple(Patch(source_id, CLAIM_INPUT, KEPT_MARK + texts[source_id]) for source_id in sources if source_id in texts)
    for item in items:
        tasks = tasks_text(_task(stage, canvas, item, row) for row in item.rows)
        yield ItemSpec(
            index=first_tile + item.index,
            kind="tile",
            prompt_hash=stage.prompt_hash,
            targets=stage.targets,
            patches=(Patch(stage.regions, TILES_INPUT, tasks), *fixed),
            seed=_seed(stage, item.rows[0].step),
        )


def _seed(stage: TileStage, step: int) -> str:
    """``offset`` goes on at 0 after the last seed."""
    if stage.geometry.tile_seeds == "same" or not stage.seed:
        return stage.seed
    return str((int(stage.seed) + step) % SEED_VALUES)


def _task(stage: TileStage, canvas: Canvas, item: TileItem, row: TileRow) -> TileTask:
    whole = not item.frames or item.frames == canvas.frames
    frames = (0, 0, 0) if whole else (canvas.frames, item.first_frame, item.frames)
    region = Region(
        canvas.width, canvas.height, row.left, row.top, row.width, row.height, row.process_width, row.process_height, *frames
    )  # fmt: skip
    seed = _seed(stage, row.step)
    return TileTask(
        region, int(seed) if seed != stage.seed else None, row.denoise if row.denoise != stage.geometry.denoise else None
    )  # fmt: skip
