"""Draws docs/images/tiles.svg from a real plan: the boxes of one tile, and which tiles of each mode wait for which."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tiler.boxes import Box  # noqa: E402
from tiler.groups import levels  # noqa: E402
from tiler.options import Mode, TileOptions  # noqa: E402
from tiler.plan import TilePlan, plan_tiles  # noqa: E402

TARGET = ROOT / "docs" / "images" / "tiles.svg"
CANVAS = (300, 220)
MODES: tuple[Mode, ...] = ("linear", "chess", "independent")
LIGHT, DARK = (226, 238, 249), (11, 51, 92)
FEWEST_SHADES = 7
GAP = 40


def picture() -> str:
    """The whole drawing."""
    width, height = CANVAS[0] + 300 + GAP, CANVAS[1] + 265
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" fill="#222">'
            f'<rect width="{width}" height="{height}" fill="#fff"/>')  # fmt: skip
    return "\n".join([head, *_boxes(), *_modes(CANVAS[1] + 92), "</svg>", ""])


def _boxes() -> Iterator[str]:
    """One tile of a plan, with the boxes that it has."""
    plan = plan_tiles(CANVAS, TileOptions(96, 96, padding=32, feather=24, uniform=False))
    step = next(step for step in plan.steps if (step.row, step.column) == (1, 1))
    yield f'<g transform="translate(20 34)"><text y="-14">canvas {CANVAS[0]} x {CANVAS[1]}, tiles of 96, padding 32, feather 24</text>'
    yield _rectangle(step.read, 'fill="#fdf1d6" stroke="#d99000" stroke-dasharray="5 3"')
    yield _rectangle(step.write, 'fill="#b5d1ea" stroke="none"')
    inner = Box(step.write.left + step.ramps.left, step.write.top + step.ramps.top,
                step.write.right - step.ramps.right, step.write.bottom - step.ramps.bottom)  # fmt: skip
    yield _rectangle(inner, 'fill="#6099c8" stroke="none"')
    for each in plan.steps:
        yield _rectangle(each.cell, 'fill="none" stroke="#555" stroke-width="0.8"')
    yield f"</g><g transform=\"translate({CANVAS[0] + GAP} 60)\">"
    legend = (('fill="#fff" stroke="#555"', "cell: a tile's own part of the canvas"),
              ('fill="#6099c8"', "written with full weight"),
              ('fill="#b5d1ea"', "ramp, its middle on the seam (feather)"),
              ('fill="#fdf1d6" stroke="#d99000" stroke-dasharray="5 3"', "read by the model (cell + padding)"))  # fmt: skip
    for row, (look, text) in enumerate(legend):
        yield f'<rect y="{row * 24}" width="16" height="14" {look}/><text x="24" y="{row * 24 + 11}">{text}</text>'
    yield "</g>"


def _modes(top: int) -> Iterator[str]:
    """Small grids: the number in a tile is its place in the order, its shade the round in which it can run."""
    yield f'<text x="20" y="{top - 28}">number: place in the order; darker: later, tiles of one shade can run at once</text>'
    for column, mode in enumerate(MODES):
        plan = plan_tiles((320, 256), TileOptions(64, 64, padding=16, uniform=False, mode=mode))
        yield f'<g transform="translate({20 + column * 205} {top}) scale(0.58)"><text y="-6" font-size="19">{mode}</text>'
        yield from _rounds(plan)
        yield "</g>"


def _rounds(plan: TilePlan) -> Iterator[str]:
    found = levels(plan)
    for step, level in zip(plan.steps, found, strict=True):
        part = level / max(*found, FEWEST_SHADES)
        shade = ",".join(str(round(light + (dark - light) * part)) for light, dark in zip(LIGHT, DARK, strict=True))
        ink = "#fff" if part > 0.4 else "#222"
        yield _rectangle(step.cell, f'fill="rgb({shade})" stroke="#fff" stroke-width="2"')
        yield (f'<text x="{step.cell.left + 32}" y="{step.cell.top + 39}" font-size="19" fill="{ink}" '
               f'text-anchor="middle">{step.index}</text>')  # fmt: skip


def _rectangle(box: Box, look: str) -> str:
    return f'<rect x="{box.left}" y="{box.top}" width="{box.width}" height="{box.height}" {look}/>'


def main() -> None:
    """Write the drawing."""
    TARGET.write_text(picture(), encoding="utf-8", newline="\n")
    print(f"wrote {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
