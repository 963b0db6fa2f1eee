"""The order of a plan, kept while tiles come back in any order: which crops may be cut, which tiles may be blended.  Indexes only.

In: what happened to a step (cut, arrived, blended). Out: what that made possible. `Blender` does the same with pixels in memory;
whoever keeps crops and tiles elsewhere follows the schedule directly.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tiler.errors import TileNotReady, TileUnknown
from tiler.plan import TilePlan


@dataclass
class Released:
    """What an event made possible; indexes in plan order."""

    to_cut: list[int] = field(default_factory=list)
    """Crops that may be cut now."""
    to_blend: list[int] = field(default_factory=list)
    """Tiles that have arrived and may be blended now."""


@dataclass
class _State:
    """One step; the numbers say how many other steps it still waits for."""

    unblended: int
    """Steps to be blended before it is cut."""
    blend_waits: int
    """Steps to be blended, and steps to be cut, before it is blended."""
    is_cut: bool = False
    has_arrived: bool = False
    is_blended: bool = False


class Schedule:
    """How far the steps of a plan have come.

    A tile may arrive without having been cut here: its crop was cut before a restart. It counts as cut from then on.
    """

    def __init__(self, plan: TilePlan) -> None:
        self.plan = plan
        self._states = [_State(len(step.waits_for), len(step.blend_after) + len(step.blend_after_cut)) for step in plan.steps]
        self._cut_after: list[list[int]] = [[] for _ in plan.steps]
        """For each step, those that wait for its blend before they are cut."""
        self._blend_after: list[list[int]] = [[] for _ in plan.steps]
        self._blend_after_cut: list[list[int]] = [[] for _ in plan.steps]
        for step in plan.steps:
            for table, others in ((self._cut_after, step.waits_for), (self._blend_after, step.blend_after),
                                  (self._blend_after_cut, step.blend_after_cut)):  # fmt: skip
                for other in others:
                    table[other].append(step.index)
        self._left = len(plan.steps)

    @property
    def done(self) -> int:
        """Steps that are blended."""
        return len(self._states) - self._left

    def cuttable(self) -> list[int]:
        """Every step that may be cut now and is not, in plan order; looks at all steps, so ask once and follow `Released`."""
        return [index for index, state in enumerate(self._states) if not state.is_cut and not state.unblended]

    def missing(self) -> list[int]:
        """The steps that are not blended, in plan order."""
        return [index for index, state in enumerate(self._states) if not state.is_blended]

    def has_arrived(self, index: int) -> bool:
        """True once the tile of this step is here, blended or not."""
        return self._state(index).has_arrived

    def is_cut(self, index: int) -> bool:
        """True once the crop of this step was cut, or its tile is here."""
        return self._state(index).is_cut

    def is_blended(self, index: int) -> bool:
        """True once the tile of this step is in the canvas."""
        return self._state(index).is_blended

    def cut(self, index: int) -> Released:
        """The crop of this step was cut; a second time changes nothing.

        Raises:
            TileNotReady: it reads what is not blended yet.
            TileUnknown: the plan has no such step.
        """
        state = self._state(index)
        if state.unblended and not state.has_arrived:
            waits_for = [other for other in self.plan.steps[index].waits_for if not self._states[other].is_blended]
            raise TileNotReady(index=index, waits_for=waits_for)
        return self._counted_as_cut(index)

    def arrive(self, index: int) -> Released:
        """The refined tile of this step is here; a second time changes nothing.

        Raises:
            TileUnknown: the plan has no such step.
        """
        state = self._state(index)
        if state.has_arrived:
            return Released()
        state.has_arrived = True
        released = self._counted_as_cut(index)
        released.to_blend = sorted({*released.to_blend, *self._blendable([index])})
        return released

    def blend(self, index: int) -> Released:
        """The tile of this step was blended; only for what `Released.to_blend` named.

        Raises:
            TileNotReady: it has not arrived, or steps before it are not blended.
            TileUnknown: the plan has no such step.
        """
        state = self._state(index)
        if not self._blendable([index]):
            raise TileNotReady(index=index, waits_for=[index])
        state.is_blended = True
        self._left -= 1
        for other in self._cut_after[index]:
            self._states[other].unblended -= 1
        for other in self._blend_after[index]:
            self._states[other].blend_waits -= 1
        to_cut = [other for other in self._cut_after[index] if not self._states[other].is_cut and not self._states[other].unblended]
        return Released(to_cut, self._blendable({*self._cut_after[index], *self._blend_after[index]}))

    def _counted_as_cut(self, index: int) -> Released:
        if self._states[index].is_cut:
            return Released()
        self._states[index].is_cut = True
        for other in self._blend_after_cut[index]:
            self._states[other].blend_waits -= 1
        return Released(to_blend=self._blendable(self._blend_after_cut[index]))

    def _blendable(self, indexes: Iterable[int]) -> list[int]:
        states = ((index, self._states[index]) for index in sorted(indexes))
        return [index for index, state in states
                if state.has_arrived and not (state.is_blended or state.unblended or state.blend_waits)]  # fmt: skip

    def _state(self, index: int) -> _State:
        if not 0 <= index < len(self._states):
            raise TileUnknown(index=index, last=len(self._states) - 1)
        return self._states[index]
