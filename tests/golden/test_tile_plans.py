"""The exact boxes, order and edges of plans: a change here changes every picture, and makes half-finished ones useless."""
from __future__ import annotations

from dataclasses import fields

import pytest

from distributed_comfy.tile_stage import TileStage
from tiler.boxes import Box
from tiler.groups import ITEM_STEPS, LEVEL_SHARES, GroupLimits, group_steps
from tiler.options import SeamFix, TileOptions
from tiler.plan import PLAN_VERSION, TilePlan, TileStep, plan_tiles


def box(of: Box) -> str:
    return f"{of.left},{of.top}-{of.right},{of.bottom}"


def line(step: TileStep) -> str:
    """``index pass row/column cell write read size ramps | later | waits_for | blend_after | blend_after_cut``"""
    ramps = step.ramps
    later = " ".join(f"{right:+d}{down:+d}" for right, down in step.later)
    edges = " | ".join(" ".join(map(str, others)) for others in (step.waits_for, step.blend_after, step.blend_after_cut))
    boxes = f"{box(step.cell)} {box(step.write)} {box(step.read)} {step.size.width}x{step.size.height}"
    where = f"{step.index} {step.pass_name} {step.row}/{step.column}"
    return " ".join(f"{where} {boxes} {ramps.left},{ramps.top},{ramps.right},{ramps.bottom} | {later} | {edges}".split())


def lines(plan: TilePlan) -> list[str]:
    return [line(step) for step in plan.steps]


SEAMS = SeamFix("half_tile_intersections", padding=8)
PLANS = {
    "one pixel": ((1, 1), TileOptions()),
    "tile larger than the canvas": ((100, 70), TileOptions(128, 128, feather=16)),
    "defaults with a remainder": ((1100, 600), TileOptions()),
    "crops of different size": ((1100, 600), TileOptions(uniform=False)),
    "chess": ((192, 192), TileOptions(64, 64, padding=16, feather=8, mode="chess")),
    "independent": ((192, 128), TileOptions(64, 64, padding=16, feather=8, mode="independent")),
    "bands": ((130, 100), TileOptions(64, 64, padding=8, feather=8, seam_fix=SeamFix("band", width=16, feather=4, padding=4))),
    "half tiles": ((128, 128), TileOptions(64, 64, padding=8, feather=8, uniform=False, seam_fix=SEAMS)),
}
GOLDEN = {
    "one pixel": """
0 tiles 0/0 0,0-1,1 0,0-1,1 0,0-1,1 8x8 0,0,0,0 | | | |
""",
    "tile larger than the canvas": """
0 tiles 0/0 0,0-100,70 0,0-100,70 0,0-100,70 104x72 0,0,0,0 | | | |
""",
    "defaults with a remainder": """
0 tiles 0/0 0,0-512,512 0,0-516,516 0,0-576,576 576x576 0,0,8,8 | +1+0 +0+1 +1+1 | | |
1 tiles 0/1 512,0-1024,512 508,0-1028,516 480,0-1056,576 576x576 8,0,8,8 | +1+0 -1+1 +0+1 +1+1 | 0 | |
2 tiles 0/2 1024,0-1100,512 1020,0-1100,516 524,0-1100,576 576x576 8,0,0,8 | -1+1 +0+1 | 1 | |
3 tiles 1/0 0,512-512,600 0,508-516,600 0,24-576,600 576x576 0,8,8,0 | +1+0 | 1 | |
4 tiles 1/1 512,512-1024,600 508,508-1028,600 480,24-1056,600 576x576 8,8,8,0 | +1+0 | 2 3 | |
5 tiles 1/2 1024,512-1100,600 1020,508-1100,600 524,24-1100,600 576x576 8,8,0,0 | | 4 | |
""",
    "crops of different size": """
0 tiles 0/0 0,0-512,512 0,0-516,516 0,0-544,544 544x544 0,0,8,8 | +1+0 +0+1 +1+1 | | |
1 tiles 0/1 512,0-1024,512 508,0-1028,516 480,0-1056,544 576x544 8,0,8,8 | +1+0 -1+1 +0+1 +1+1 | 0 | |
2 tiles 0/2 1024,0-1100,512 1020,0-1100,516 992,0-1100,544 112x544 8,0,0,8 | -1+1 +0+1 | 1 | |
3 tiles 1/0 0,512-512,600 0,508-516,600 0,480-544,600 544x120 0,8,8,0 | +1+0 | 1 | |
4 tiles 1/1 512,512-1024,600 508,508-1028,600 480,480-1056,600 576x120 8,8,8,0 | +1+0 | 2 3 | |
5 tiles 1/2 1024,512-1100,600 1020,508-1100,600 992,480-1100,600 112x120 8,8,0,0 | | 4 | |
""",
    "chess": """
0 tiles 0/0 0,0-64,64 0,0-68,68 0,0-96,96 96x96 0,0,8,8 | +1+0 +0+1 +1+1 | | |
1 tiles 0/2 128,0-192,64 124,0-192,68 96,0-192,96 96x96 8,0,0,8 | -1+0 -1+1 +0+1 | | |
2 tiles 2/0 0,128-64,192 0,124-68,192 0,96-96,192 96x96 0,8,8,0 | +0-1 +1-1 +1+0 | | |
3 tiles 2/2 128,128-192,192 124,124-192,192 96,96-192,192 96x96 8,8,0,0 | -1-1 +0-1 -1+0 | | |
4 tiles 0/1 64,0-128,64 60,0-132,68 48,0-144,96 96x96 8,0,8,8 | -1+1 +0+1 +1+1 | 0 1 | |
5 tiles 2/1 64,128-128,192 60,124-132,192 48,96-144,192 96x96 8,8,8,0 | -1-1 +0-1 +1-1 | 2 3 | |
6 tiles 1/0 0,64-64,128 0,60-68,132 0,48-96,144 96x96 0,8,8,8 | +1+0 | 4 5 | |
7 tiles 1/2 128,64-192,128 124,60-192,132 96,48-192,144 96x96 8,8,0,8 | -1+0 | 4 5 | |
8 tiles 1/1 64,64-128,128 60,60-132,132 48,48-144,144 96x96 8,8,8,8 | | 6 7 | |
""",
    "independent": """
0 tiles 0/0 0,0-64,64 0,0-68,68 0,0-96,96 96x96 0,0,8,8 | +1+0 +0+1 +1+1 | | |
1 tiles 0/2 128,0-192,64 124,0-192,68 96,0-192,96 96x96 8,0,0,8 | -1+0 -1+1 +0+1 | | |
2 tiles 0/1 64,0-128,64 60,0-132,68 48,0-144,96 96x96 8,0,8,8 | -1+1 +0+1 +1+1 | | 0 1 |
3 tiles 1/0 0,64-64,128 0,60-68,128 0,32-96,128 96x96 0,8,8,0 | +1+0 | | 2 |
4 tiles 1/2 128,64-192,128 124,60-192,128 96,32-192,128 96x96 8,8,0,0 | -1+0 | | 2 |
5 tiles 1/1 64,64-128,128 60,60-132,128 48,32-144,128 96x96 8,8,8,0 | | | 3 4 |
""",
    "bands": """
0 tiles 0/0 0,0-64,64 0,0-68,68 0,0-80,80 80x80 0,0,8,8 | +1+0 +0+1 +1+1 | | |
1 tiles 0/1 64,0-128,64 60,0-130,68 50,0-130,80 80x80 8,0,8,8 | +1+0 -1+1 +0+1 +1+1 | 0 | |
2 tiles 0/2 128,0-130,64 124,0-130,68 50,0-130,80 80x80 8,0,0,8 | -1+1 +0+1 | 1 | |
3 tiles 1/0 0,64-64,100 0,60-68,100 0,20-80,100 80x80 0,8,8,0 | +1+0 | 1 | | 2
4 tiles 1/1 64,64-128,100 60,60-130,100 50,20-130,100 80x80 8,8,8,0 | +1+0 | 2 3 | |
5 tiles 1/2 128,64-130,100 124,60-130,100 50,20-130,100 80x80 8,8,0,0 | | 4 | |
6 vertical_seams 0/0 56,0-72,64 54,0-74,66 52,0-76,72 24x72 4,0,4,4 | +0+1 | 4 | | 5
7 vertical_seams 0/1 120,0-130,64 118,0-130,66 106,0-130,72 24x72 4,0,0,4 | +0+1 | 5 | |
8 vertical_seams 1/0 56,64-72,100 54,62-74,100 52,28-76,100 24x72 4,4,4,0 | | 6 | |
9 vertical_seams 1/1 120,64-130,100 118,62-130,100 106,28-130,100 24x72 4,4,0,0 | | 7 | |
10 horizontal_seams 0/0 0,56-64,72 0,54-66,74 0,52-72,76 72x24 0,4,4,4 | +1+0 | 8 | |
11 horizontal_seams 0/1 64,56-128,72 62,54-130,74 58,52-130,76 72x24 4,4,4,4 | +1+0 | 9 10 | |
12 horizontal_seams 0/2 128,56-130,72 126,54-130,74 58,52-130,76 72x24 4,4,0,4 | | 11 | |
""",
    "half tiles": """
0 tiles 0/0 0,0-64,64 0,0-68,68 0,0-72,72 72x72 0,0,8,8 | +1+0 +0+1 +1+1 | | |
1 tiles 0/1 64,0-128,64 60,0-128,68 56,0-128,72 72x72 8,0,0,8 | -1+1 +0+1 | 0 | |
2 tiles 1/0 0,64-64,128 0,60-68,128 0,56-72,128 72x72 0,8,8,0 | +1+0 | 1 | |
3 tiles 1/1 64,64-128,128 60,60-128,128 56,56-128,128 72x72 8,8,0,0 | | 2 | |
4 vertical_seams 0/0 48,0-80,64 32,0-96,80 24,0-104,88 80x88 32,0,32,32 | +0+1 | 3 | |
5 vertical_seams 1/0 48,64-80,128 32,48-96,128 24,40-104,128 80x88 32,32,32,0 | | 4 | |
6 horizontal_seams 0/0 0,48-64,80 0,32-80,96 0,24-88,104 88x80 0,32,32,32 | +1+0 | 5 | |
7 horizontal_seams 0/1 64,48-128,80 48,32-128,96 40,24-128,104 88x80 32,32,0,32 | | 6 | |
8 crossings 0/0 48,48-80,80 32,32-96,96 24,24-104,104 80x80 32,32,32,32 | | 7 | |
""",
}


@pytest.mark.parametrize("name", PLANS)
def test_the_plan_of(name: str) -> None:
    assert lines(plan_tiles(*PLANS[name])) == GOLDEN[name].strip().splitlines()


ITEMS = {
    "linear": ((640, 384), TileOptions(64, 64, padding=32, feather=8), GroupLimits(2**16, shares=1)),
    "chess": ((640, 384), TileOptions(64, 64, padding=32, feather=8, mode="chess"), GroupLimits(2**16, shares=2)),
    "independent": ((640, 384), TileOptions(64, 64, padding=16, feather=8, mode="independent"), GroupLimits(2**20, shares=1)),
    "half tiles": ((320, 200), TileOptions(64, 64, padding=8, mode="chess", uniform=False, seam_fix=SEAMS), GroupLimits(2**16, shares=2)),
}
GOLDEN_ITEMS = {
    "linear": """
0 | 1 | 2 | 3 10 | 4 11 | 5 12 | 6 13 20 | 7 14 21 | 8 15 22 | 9 16 23 30 | 17 24 31 | 18 25 32 | 19 26 33 40 | 27 34 41 | 28 35 42 | 29
36 43 50 | 37 44 51 | 38 45 52 | 39 46 53 | 47 54 | 48 55 | 49 56 | 57 | 58 | 59
""",
    "chess": """
0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 | 15 16 17 18 | 20 21 22 23 | 25 26 27 28 | 19 29 30 31 | 32 35 36 37 | 24 33 38 40 | 41 42 45
46 | 50 51 | 34 39 43 | 47 52 55 | 56 | 44 48 | 53 57 | 49 | 54 | 58 | 59
""",
    "independent": """
0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 | 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 | 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46
47 | 48 49 50 51 52 53 54 55 56 57 58 59
""",
    "half tiles": """
0 1 2 | 3 4 5 | 6 7 | 8 9 | 10 11 12 | 13 14 15 | 16 17 | 18 19 | 20 21 | 22 23 | 24 25 | 26 27 | 28 29 | 30 31 | 36 | 39 | 32 33 | 34
35 | 37 38 | 40 41 | 42 43 | 44 45 | 46 | 47 | 48 | 49 | 50 | 51 52 | 53 54 | 55 56 | 57 58 | 59 | 60 | 61 | 62
""",
}


@pytest.mark.parametrize("name", ITEMS)
def test_the_items_of(name: str) -> None:
    size, options, limits = ITEMS[name]
    items = group_steps(plan_tiles(size, options), limits)
    assert " | ".join(" ".join(map(str, item)) for item in items) == " ".join(GOLDEN_ITEMS[name].split())


def test_whoever_changes_one_of_these_raises_the_version() -> None:
    """Else a run would go on with tiles of a plan that is another now: make the texts above anew and raise the number here, too."""
    assert PLAN_VERSION == 1
    defaults = {field.name: field.default for field in fields(TileStage)}
    assert (defaults["plan_version"], defaults["item_tiles"], defaults["level_shares"]) == (PLAN_VERSION, ITEM_STEPS, LEVEL_SHARES)
    assert GroupLimits(1) == GroupLimits(1, steps=16, shares=8)
