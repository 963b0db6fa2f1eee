"""The items that tiles become: what each is told of its place, its seed and its constants."""
from __future__ import annotations

from typing import Any

import pytest

from distributed_comfy.messages import ItemSpec, apply_patches, dump, load
from distributed_comfy.tile_stage import TileStage
from distributed_comfy.workflow.region import Region
from distributed_comfy.workflow.tile_items import Canvas, TileRow, tile_specs
from tests.prompts import node, out
from tests.upscale_prompts import photo, plan, stage

CANVAS = Canvas(2048, 1536, 1)
ROW = TileRow(index=3, step=3, left=480, top=0, width=540, height=512, process_width=544, process_height=512)


def tile_stage(**inputs: Any) -> TileStage:
    found = plan(photo(**inputs)).tiles
    assert found is not None
    return found


def spec_of(row: TileRow, canvas: Canvas = CANVAS, **inputs: Any) -> ItemSpec:
    (spec,) = tile_specs(tile_stage(**inputs), 2, canvas, [row])
    return spec


def inputs_of(spec: ItemSpec, node_id: str, **inputs: Any) -> dict[str, Any]:
    """What a node is given once the item's literals are in place."""
    found: dict[str, Any] = apply_patches(stage(plan(photo(**inputs)), "tile"), spec.patches)[node_id]["inputs"]
    return found


def test_a_tile_is_told_its_place_in_all_nodes_that_cut() -> None:
    spec = spec_of(ROW)
    assert (spec.index, spec.kind, spec.targets, spec.seed) == (5, "tile", ("up",), "42")
    expected = Region(2048, 1536, 480, 0, 540, 512, 544, 512)
    for name, taken in (("model", "model"), ("positive", "conditioning"), ("negative", "conditioning")):
        given = inputs_of(spec, f"up~{name}")
        given.pop(taken)
        assert Region(**given) == expected
    assert load(ItemSpec, dump(spec)) == spec


def test_tiles_share_everything_but_their_numbers() -> None:
    rows = [ROW, TileRow(index=4, step=4, left=1000, top=0, width=540, height=512, process_width=544, process_height=512)]
    first, second = tile_specs(tile_stage(), 2, CANVAS, rows)
    assert (first.prompt_hash, first.targets) == (second.prompt_hash, second.targets)
    assert [spec.index for spec in (first, second)] == [5, 6]
    differing = {(one.node_id, one.input) for one, other in zip(first.patches, second.patches, strict=True) if one != other}
    assert differing == {(node_id, "left") for node_id in ("up~model", "up~positive", "up~negative")}


def test_a_part_of_the_frames_is_told_and_all_of_them_are_not() -> None:
    part = TileRow(index=0, step=0, left=0, top=0, width=512, height=512, process_width=512, process_height=512, first_frame=8, frames=4)
    given = inputs_of(spec_of(part, Canvas(2048, 1536, 20)), "up~positive")
    assert (given["canvas_frames"], given["first_frame"], given["frames"]) == (20, 8, 4)
    assert "frames" not in inputs_of(spec_of(part, Canvas(2048, 1536, 4)), "up~positive")


@pytest.mark.parametrize(
    ("inputs", "step", "seed"),
    [
        ({}, 3, 42), ({"tile_seeds": "offset"}, 0, 42), ({"tile_seeds": "offset"}, 3, 45),
        ({"tile_seeds": "offset", "seed": 2**64 - 2}, 3, 1),
    ],
)  # fmt: skip
def test_the_seed_of_a_tile(inputs: dict[str, Any], step: int, seed: int) -> None:
    spec = spec_of(TileRow(9, step, 0, 0, 512, 512, 512, 512), **inputs)
    assert spec.seed == str(seed)
    assert inputs_of(spec, "up~sample", **inputs)["seed"] == seed


def test_a_step_of_the_seam_fix_has_its_own_denoise() -> None:
    assert inputs_of(spec_of(TileRow(0, 0, 0, 0, 512, 512, 512, 512, denoise=0.2)), "up~sample")["denoise"] == 0.2
    assert inputs_of(spec_of(TileRow(0, 0, 0, 0, 512, 512, 512, 512)), "up~sample")["denoise"] == 0.4


def test_a_constant_that_is_kept_gets_its_own_text_in_place_of_the_claim() -> None:
    prompt = photo(positive=out("control"))
    prompt["control"] = node("ControlNetApply", conditioning=out("pos"), image=out("scale"), strength=1.0)
    job = plan(prompt)
    assert job.tiles is not None
    (spec,) = tile_specs(job.tiles, 2, CANVAS, [ROW], {"scale~0": "blob#4", "other": "?"})
    tile = apply_patches(stage(job, "tile"), spec.patches)
    assert tile["scale~0"] == node("DistributedSource", claim_id="kept:blob#4", slots="value")
    assert tile["up~pixels"]["inputs"]["claim_id"] == "" and tile["up"]["inputs"]["claim_id"] == ""
