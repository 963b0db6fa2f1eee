"""What a plan must amount to, worked out the slow way: every pair of steps, every pixel of the canvas.  And plans to try it on."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from tiler.blend import blend_tile
from tiler.boxes import Box
from tiler.crop import Pixels, cut_tile
from tiler.options import SeamFix, TileOptions
from tiler.plan import TilePlan, TileStep, plan_tiles

MODES = ("linear", "chess", "independent")
SEAM_KINDS = ("none", "band", "half_tile", "half_tile_intersections")
Refiner = Callable[[TileStep, Pixels], Pixels]
Event = tuple[str, int]
"""``("cut", index)`` or ``("blend", index)``."""


# -- plans to try --------------------------------------------------------------------------------------------------------
@st.composite
def options(draw: st.DrawFn, most_padding: int = 256, most_tile: int = 120) -> TileOptions:
    """Options that work together."""
    sides = st.sampled_from([64, 64, *range(64, most_tile + 1, 8)])
    width, height = draw(sides), draw(sides)
    tile, padding = min(width, height), st.integers(0, most_padding)
    kind = draw(st.sampled_from(SEAM_KINDS))
    band = draw(st.integers(8, tile))
    widest = min(band, tile - band) // 2 * 2 if kind == "band" else tile // 2
    seam = SeamFix(kind, band, draw(st.integers(0, widest) | st.none() if kind != "band" else st.integers(0, widest)), draw(padding))
    return TileOptions(width, height, draw(padding), draw(st.integers(0, tile)), draw(st.booleans()), draw(st.sampled_from(MODES)), seam)


@st.composite
def plans(draw: st.DrawFn, most_columns: int = 5, most_padding: int = 256, most_steps: int = 80) -> TilePlan:
    """Plans of few steps, with every mode, seam fix and odd remainder."""
    chosen = draw(options(most_padding))
    # Sampled, not drawn as whole numbers: those are mostly small.
    width, height = (draw(st.sampled_from(range(most_columns))) * side + draw(st.integers(1, side)) for side in chosen.tile)
    plan = plan_tiles((width, height), chosen)
    assume(len(plan.steps) <= most_steps)
    return plan


def picture(plan: TilePlan, frames: int = 1, channels: int = 1, seed: int = 0) -> Pixels:
    """Noise of the plan's size."""
    return np.random.default_rng(seed).random((frames, plan.size.height, plan.size.width, channels), np.float32)


# -- refiners ------------------------------------------------------------------------------------------------------------
def mixing(step: TileStep, crop: Pixels) -> Pixels:
    """Depends on the step and on every pixel of the crop, at every pixel."""
    shades = np.random.default_rng(step.index).random(crop.shape, np.float32)
    weighted = np.linspace(0.5, 1.5, crop.size, dtype=np.float64).reshape(crop.shape) * crop
    return np.asarray(0.4 * crop + 0.3 * shades + 0.3 * np.float32(np.mean(weighted)), np.float32)


# -- running -------------------------------------------------------------------------------------------------------------
def run_events(plan: TilePlan, events: Iterable[Event], refine: Refiner, image: Pixels) -> Pixels:
    """Cut and blend in exactly this order, with no check."""
    canvas, tiles = image.copy(), {}
    for kind, index in events:
        step = plan.steps[index]
        if kind == "cut":
            tiles[index] = refine(step, cut_tile(image if step.source == "image" else canvas, step))
        else:
            blend_tile(canvas, step, tiles.pop(index))
    return canvas


def one_by_one(plan: TilePlan) -> Iterator[Event]:
    """Step after step in plan order, as a program without any queue would."""
    for step in plan.steps:
        yield "cut", step.index
        yield "blend", step.index


# -- what must come before what -------------------------------------------------------------------------------------------
def conflicts(plan: TilePlan) -> Iterator[tuple[Event, Event]]:
    """Every pair of events whose order changes a pixel, the earlier one of `one_by_one` first; by looking at all pairs of steps."""
    for later in plan.steps:
        yield ("cut", later.index), ("blend", later.index)
        for earlier in plan.steps[: later.index]:
            if later.source == "canvas" and earlier.write.meets(later.read):
                yield ("blend", earlier.index), ("cut", later.index)
            if earlier.source == "canvas" and earlier.read.meets(later.write):
                yield ("cut", earlier.index), ("blend", later.index)
            if earlier.write.meets(later.write):
                yield ("blend", earlier.index), ("blend", later.index)


def edges(step: TileStep) -> Iterator[tuple[Event, Event]]:
    """What the plan says that this step waits for."""
    yield from ((("blend", other), ("cut", step.index)) for other in step.waits_for)
    yield from ((("blend", other), ("blend", step.index)) for other in step.blend_after)
    yield from ((("cut", other), ("blend", step.index)) for other in step.blend_after_cut)


def all_edges(plan: TilePlan) -> list[tuple[Event, Event]]:
    """Every edge of a plan, without the one from a step's cut to its own blend."""
    return [edge for step in plan.steps for edge in edges(step)]


class Before:
    """What must come before what, by following all edges."""

    def __init__(self, steps: int, given: Iterable[tuple[Event, Event]]) -> None:
        direct: dict[Event, list[Event]] = {("blend", index): [("cut", index)] for index in range(steps)}
        for first, second in given:
            direct.setdefault(second, []).append(first)
        self._bits: dict[Event, int] = {}
        for index in range(steps):
            for event in (("cut", index), ("blend", index)):
                self._bits[event] = 0
                for other in direct.get(event, []):
                    self._bits[event] |= self._bits[other] | 1 << _number(other)

    def is_before(self, first: Event, second: Event) -> bool:
        """True if every run has ``first`` before ``second``."""
        return bool(self._bits[second] >> _number(first) & 1)

    def run_with(self, second: Event, before: Event) -> list[Event]:
        """A run, allowed by the edges, that has ``second`` before ``before``."""
        events = sorted(self._bits, key=_number)
        first = [event for event in events if self.is_before(event, second)]
        assert before not in first
        return [*first, second, *(event for event in events if event != second and event not in set(first))]


def _number(event: Event) -> int:
    return 2 * event[1] + (event[0] == "blend")


# -- what each tile weighs -------------------------------------------------------------------------------------------------
def weights(plan: TilePlan, step: TileStep) -> np.ndarray:
    """The step's weight at every pixel of the canvas [H, W], from the definition: a straight ramp along x times one along y."""
    across = _profile(plan.size.width, (step.cell.left, step.cell.right), (step.ramps.left, step.ramps.right))
    down = _profile(plan.size.height, (step.cell.top, step.cell.bottom), (step.ramps.top, step.ramps.bottom))
    return np.outer(down, across)


def _profile(length: int, cell: tuple[int, int], ramps: tuple[int, int]) -> np.ndarray:
    middles = np.arange(length) + 0.5
    rising = np.clip((middles - cell[0]) / ramps[0] + 0.5, 0, 1) if ramps[0] else (middles > cell[0]).astype(float)
    falling = np.clip((cell[1] - middles) / ramps[1] + 0.5, 0, 1) if ramps[1] else (middles < cell[1]).astype(float)
    return np.asarray(rising * falling)


def mixed(plan: TilePlan, tiles: Sequence[Pixels], image: Pixels) -> np.ndarray:
    """The canvas that the tiles should make: in each pass the weighted sum of the tiles and of what lay below, in float64."""
    canvas = image.astype(np.float64)
    for name in dict.fromkeys(step.pass_name for step in plan.steps):
        steps = [step for step in plan.steps if step.pass_name == name]
        total = sum(weights(plan, step) for step in steps)
        mixture = canvas * (1 - total)[None, :, :, None]
        for step in steps:
            placed = np.zeros_like(canvas)
            _inside(placed, step.read)[...] = tiles[step.index][:, : step.read.height, : step.read.width]
            mixture += placed * weights(plan, step)[None, :, :, None]
        canvas = mixture
    return canvas


def _inside(canvas: np.ndarray, box: Box) -> np.ndarray:
    return canvas[:, box.top : box.bottom, box.left : box.right]


def without_edge(plan: TilePlan, edge: tuple[Event, Event]) -> TilePlan:
    """The plan, but for one edge."""
    (kind, other), (before, index) = edge
    name = "waits_for" if before == "cut" else "blend_after" if kind == "blend" else "blend_after_cut"
    step = plan.steps[index]
    changed = replace(step, **{name: tuple(each for each in getattr(step, name) if each != other)})
    return replace(plan, steps=(*plan.steps[:index], changed, *plan.steps[index + 1 :]))
