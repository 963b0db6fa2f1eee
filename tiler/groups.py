"""What makes one item: several small steps of a plan, or some of the frames.  Decided by sizes alone, never by who is idle."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from tiler.errors import FrameOverLimit, TileOptionInvalid
from tiler.plan import TilePlan, TileStep

ITEM_STEPS, LEVEL_SHARES = 16, 8


@dataclass(frozen=True)
class GroupLimits:
    """How many steps make one item at most."""

    pixels: int
    """Of all crops of an item, of one frame; a larger step is an item by itself. 0: one step per item."""
    steps: int = ITEM_STEPS
    shares: int = LEVEL_SHARES
    """Into how many items a level is split at least, where it has so many steps: as many workers find work at once."""


def levels(plan: TilePlan) -> list[int]:
    """For each step, the length of the longest chain of steps that must come before its crop is cut.

    Steps of one level never wait for each other, and a step waits only for blends that need no crop of its own level: where a
    step is blended after another's cut, its blend counts as of that other's level.
    """
    cut: list[int] = []
    blended: list[int] = []
    for step in plan.steps:
        cut.append(max((blended[other] + 1 for other in step.waits_for), default=0))
        after = [cut[step.index], *(blended[other] for other in step.blend_after), *(cut[other] for other in step.blend_after_cut)]
        blended.append(max(after))
    return cut


def group_steps(plan: TilePlan, limits: GroupLimits) -> tuple[tuple[int, ...], ...]:
    """Put small steps together, so that one item carries more work than its dispatch costs.

    The rule: steps of one pass and one level (see `levels`), in plan order, fill an item until the next one would take it beyond a limit.
    So the steps of an item are independent of each other and can all be cut once the level before is blended; and no item ever
    waits for itself, as it needs blends of lower levels only.

    Returns:
        The items, each the indexes of its steps; an item comes after all that it waits for.
    """
    level = levels(plan)

    def key(step: TileStep) -> tuple[int, str]:
        return level[step.index], step.pass_name

    in_levels = sorted(plan.steps, key=key)  # stable: plan order within
    return tuple(item for _, alike in groupby(in_levels, key) for item in _filled(list(alike), limits))


def _filled(steps: Sequence[TileStep], limits: GroupLimits) -> Iterator[tuple[int, ...]]:
    most = min(limits.steps, max(1, len(steps) // limits.shares))
    item: list[int] = []
    pixels = 0
    for step in steps:
        size = step.size.width * step.size.height
        if item and (len(item) >= most or pixels + size > limits.pixels):
            yield tuple(item)
            item, pixels = [], 0
        item.append(step.index)
        pixels += size
    yield tuple(item)


def frame_groups(frames: int, bytes_per_frame: int, limit_bytes: int) -> tuple[tuple[int, int], ...]:
    """Split frames into as few groups as the limit allows, of sizes that differ by one at most.

    Args:
        frames: at least 1.
        bytes_per_frame: what one frame of an item takes.
        limit_bytes: what an item may take.
    Returns:
        (first, one past the last) of each group, in order.
    Raises:
        TileOptionInvalid: no frames.
        FrameOverLimit: one frame is too large already.
    """
    if frames < 1:
        raise TileOptionInvalid(option="frames", value=frames, expected="at least 1")
    fitting = limit_bytes // max(1, bytes_per_frame)
    if fitting < 1:
        raise FrameOverLimit(bytes_per_frame=bytes_per_frame, limit_bytes=limit_bytes)
    count = -(-frames // fitting)
    borders = [frames * number // count for number in range(count + 1)]
    return tuple(pairwise(borders))
