"""docs/tiles.md says what the code does: its picture, its example, its list of errors."""
from __future__ import annotations

import re
import textwrap
from pathlib import Path

import draw_tiles
import numpy as np

from tiler import errors
from tiler.crop import Pixels

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tiles.md").read_text(encoding="utf-8")


def test_the_picture_is_the_one_that_the_code_draws() -> None:
    assert draw_tiles.TARGET.read_text(encoding="utf-8") == draw_tiles.picture(), "run python scripts/draw_tiles.py"


def test_every_error_is_listed_with_what_its_class_says() -> None:
    listed = dict(re.findall(r"^\| `(tile\w*|too_many_tiles)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert listed == {error.code: error.__doc__ for error in errors.all_errors() if error is not errors.TilerError}


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
