"""docs/tiles.md says what the code does: its picture, its example, its list of errors."""
from __future__ import annotations

import re
import textwrap
from pathlib import Path

import draw_tiles
import numpy as np

from distributed_comfy.nodes.upscale import UltimateSDUpscaleDistributed
from tiler import errors
from tiler.crop import Pixels

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tiles.md").read_text(encoding="utf-8")


def test_the_picture_is_the_one_that_the_code_draws() -> None:
    assert draw_tiles.TARGET.read_text(encoding="utf-8") == draw_tiles.picture(), "run python scripts/draw_tiles.py"


def test_every_error_is_listed_with_what_its_class_says() -> None:
    listed = dict(re.findall(r"^\| `(tile\w*|too_many_tiles)` \| (.*) \|$", PAGE.split("## Errors\n")[1], re.MULTILINE))
    assert listed == {error.code: error.__doc__ for error in errors.all_errors() if error is not errors.TilerError}


def test_every_input_that_is_a_choice_is_explained_with_its_default() -> None:
    declared = UltimateSDUpscaleDistributed.INPUT_TYPES()
    names = [*("tile_width", "tile_height", "padding", "mask_blur", "denoise"), *declared["optional"]]
    section = PAGE.split("## What to choose\n")[1].split("\n## ")[0]
    rows = dict(row.split("|")[1:3] for row in section.splitlines() if row.startswith("| `"))
    told = {name: default.strip().strip("`") for row, defaults in rows.items() for name, default in pairs(row, defaults)}
    assert told == {name: str({**declared["required"], **declared["optional"]}[name][1]["default"]) for name in names}


def pairs(row: str, defaults: str) -> list[tuple[str, str]]:
    """Inputs of one row and their defaults; one default may be that of all."""
    names, values = re.findall(r"`(\w+)`", row), defaults.split(",")
    return list(zip(names, values if len(values) > 1 else values * len(names), strict=True))


def test_the_example_runs() -> None:
    example = textwrap.dedent(PAGE.split("## In code\n")[1].split("\nCrops may be")[0])
    example = example.replace("4096, 4096", "256, 192").replace("1024", "64")
    assert 'SeamFix("band")' in example
    image = np.random.default_rng(0).random((1, 192, 256, 3), np.float32)
    seeds = []

    def refine(crop: Pixels, *, seed: int) -> Pixels:
        seeds.append(seed)
        return crop

    names = {"image": image, "refine": refine}
    exec(example.replace('SeamFix("band")', 'SeamFix("band", width=32)'), names)
    assert np.array_equal(names["canvas"], image)  # type: ignore[arg-type]
    assert set(seeds) == {42}
