"""The items that tiles become: what each is told of its tiles, their seeds and its constants."""
from __future__ import annotations

from typing import Any

import pytest

from distributed_comfy.messages import ItemSpec, apply_patches, dump, load
from distributed_comfy.tile_stage import TileStage
from distributed_comfy.workflow.region import Region, TileTask, read_tasks, tasks_text
from distributed_comfy.workflow.tile_items import Canvas, TileItem, TileRow, tile_specs
from tests.prompts import node, out
from tests.upscale_prompts import photo, plan, stage

CANVAS = Canvas(2048, 1536, 1)
ROW = TileRow(step=3, left=480, top=0, width=540, height=512, process_width=544, process_height=512)
NEXT = TileRow(step=5, left=1000, top=0, width=540, height=512, process_width=544, process_height=512)
REGION = Region(2048, 1536, 480, 0, 540, 512, 544, 512)


def tile_stage(**inputs: Any) -> TileStage:
    found = plan(photo(**inputs)).tiles
    assert found is not None
    return found


def spec_of(item: TileItem, canvas: Canvas = CANVAS, **inputs: Any) -> ItemSpec:
    (spec,) = tile_specs(tile_stage(**inputs), 2, canvas, [item])
    return spec


def tasks_of(spec: ItemSpec, **inputs: Any) -> list[TileTask]:
    """What the item is told, once its literals are in place."""
    return read_tasks(apply_patches(stage(plan(photo(**inputs)), "tile"), spec.patches)["up~regions"]["inputs"]["tiles"])


def test_an_item_is_told_where_its_tiles_lie() -> None:
    spec = spec_of(TileItem(3, (ROW,)))
    assert (spec.index, spec.kind, spec.targets, spec.seed) == (5, "tile", ("up",), "42")
    assert tasks_of(spec) == [TileTask(REGION)]
    assert load(ItemSpec, dump(spec)) == spec


def test_items_share_everything_but_what_they_are_told() -> None:
    first, second = tile_specs(tile_stage(), 2, CANVAS, [TileItem(3, (ROW,)), TileItem(4, (NEXT, ROW))])
    assert (first.prompt_hash, first.targets) == (second.prompt_hash, second.targets)
    assert [spec.index for spec in (first, second)] == [5, 6]
    assert [(patch.node_id, patch.input) for patch in (*first.patches, *second.patches)] == [("up~regions", "tiles")] * 2
    assert [task.region.left for task in tasks_of(second)] == [1000, 480]


def test_a_part_of_the_frames_is_told_and_all_of_them_are_not() -> None:
    part = TileItem(0, (ROW, NEXT), first_frame=8, frames=4)
    found = [task.region for task in tasks_of(spec_of(part, Canvas(2048, 1536, 20)))]
    assert [(region.canvas_frames, region.first_frame, region.frames) for region in found] == [(20, 8, 4)] * 2
    whole = spec_of(part, Canvas(2048, 1536, 4))
    assert tasks_of(whole)[0] == TileTask(REGION) and "frames" not in str(whole.patches)


@pytest.mark.parametrize(
    ("inputs", "steps", "seeds"),
    [
        ({}, (3,), [None]), ({"tile_seeds": "offset"}, (0, 3), [None, 45]), ({"tile_seeds": "offset"}, (3, 8), [45, 50]),
        ({"tile_seeds": "offset", "seed": 2**64 - 2}, (1, 2), [2**64 - 1, 0]),
    ],
)  # fmt: skip
def test_the_seeds_of_tiles(inputs: dict[str, Any], steps: tuple[int, ...], seeds: list[int | None]) -> None:
    spec = spec_of(TileItem(9, tuple(TileRow(step, 0, 0, 512, 512, 512, 512) for step in steps)), **inputs)
    assert spec.seed == str(seeds[0] or inputs.get("seed", 42))
    assert [task.seed for task in tasks_of(spec, **inputs)] == seeds


def test_a_step_of_the_seam_fix_has_its_own_denoise() -> None:
    rows = [TileRow(0, 0, 0, 512, 512, 512, 512, denoise=denoise) for denoise in (0.2, None, 0.4)]
    found = [tasks_of(spec_of(TileItem(0, (row,))))[0].denoise for row in rows]
    assert found == [0.2, None, None], "0.4 is the job's own"


def test_a_text_of_tasks_is_read_as_it_was_written() -> None:
    tasks = [TileTask(REGION, 2**64 - 1, 0.35), TileTask(Region(8, 8, 0, 0, 8, 8, 8, 8, 9, 3, 2)), TileTask(REGION, 0, 0.0)]
    assert read_tasks(tasks_text(tasks)) == tasks


def test_a_constant_that_is_kept_gets_its_own_text_in_place_of_the_claim() -> None:
    prompt = photo(positive=out("control"))
    prompt["control"] = node("ControlNetApply", conditioning=out("pos"), image=out("scale"), strength=1.0)
    job = plan(prompt)
    assert job.tiles is not None
    (spec,) = tile_specs(job.tiles, 2, CANVAS, [TileItem(3, (ROW,))], {"scale~0": "blob#4", "other": "?"})
    tile = apply_patches(stage(job, "tile"), spec.patches)
    assert tile["scale~0"] == node("DistributedSource", claim_id="kept:blob#4", slots="value")
    assert tile["up~pixels"]["inputs"]["claim_id"] == "" and tile["up"]["inputs"]["claim_id"] == ""
