"""Which step waits for which: found from the overlaps of columns and of rows, and pruned to what is not implied by the rest.

Each step has two events: its crop is *cut*, its tile is *blended*.  For a step B and an earlier step A (in plan order):

- A is blended before B is cut, where A writes what B reads;
- A is cut before B is blended, where B writes what A reads;
- A is blended before B is blended, where both write the same pixels.

So every crop and every pixel is what it would be if the steps ran one after the other.  A step that reads the image as it was
reads nothing that another writes.

A rule that others imply is dropped.  What a step keeps depends only on its surroundings, and these repeat all over the canvas: columns (and
rows) whose surroundings are alike get the same *kind*, and the work is done once for each pair of kinds.
"""
from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tiler.boxes import Span
from tiler.options import Mode
from tiler.passes import Strip, TilePass

PRUNED_NEIGHBOURS = 32
"""A step with more direct predecessors (padding far beyond the tile) is pruned by their direct predecessors only: it may keep some
rule that others imply, and planning stays fast."""
DEPTH = 4
"""How many events back a rule is looked for before it counts as not implied. Exact on all plans tried, against a full search."""


class Place(NamedTuple):
    """One step: number of its pass, row and column in it."""

    number: int
    row: int
    column: int


class Event(NamedTuple):
    """The crop of a step is cut, or its tile is blended."""

    place: Place
    is_blend: bool


Relation = tuple[str, str]
"""Span of the earlier step that meets a span of the later one."""
WRITES_WHAT_IS_READ, READS_WHAT_IS_WRITTEN, BOTH_WRITE = RELATIONS = (("write", "read"), ("read", "write"), ("write", "write"))
Offset = tuple[int, int, int]
"""Another step as this one sees it: number of its pass, rows down, columns to the right."""


@dataclass(frozen=True)
class Rules:
    """What one kind of step waits for."""

    blended_before_cut: tuple[Offset, ...]
    blended_before_blend: tuple[Offset, ...]
    cut_before_blend: tuple[Offset, ...]


class Overlaps:
    """For each strip of one axis: which strips of a pass it meets, as a range.

    Args:
        axes: the strips of each pass on this axis, in their order along it.
        is_coloured: neighbours differ in colour, so that even and odd strips are of different kinds.
    """

    def __init__(self, axes: Sequence[tuple[Strip, ...]], *, is_coloured: bool) -> None:
        self._axes = axes
        self._ranges = {(relation, number): [_meeting(strips, relation, axes[: number + 1], at) for at in range(len(strips))]
                        for relation in RELATIONS for number, strips in enumerate(axes)}  # fmt: skip
        self._period = 2 if is_coloured else 1
        self.kinds = self._found_kinds()
        """For each pass and strip, a number that is the same where the surroundings are alike."""

    def met(self, relation: Relation, number: int, at: int) -> list[range]:
        """For each pass up to this one, the strips that meet strip ``at`` of pass ``number``."""
        return self._ranges[relation, number][at]

    def _found_kinds(self) -> list[list[int]]:
        kinds = [[at % self._period for at in range(len(strips))] for strips in self._axes]
        for _ in range(DEPTH + 1):
            seen: dict[object, int] = {}
            kinds = [[seen.setdefault(self._surroundings(kinds, number, at), len(seen)) for at in range(len(strips))]
                     for number, strips in enumerate(self._axes)]  # fmt: skip
        return kinds

    def _surroundings(self, kinds: list[list[int]], number: int, at: int) -> tuple[object, ...]:
        """What a strip is and what it meets, in words that do not depend on where it lies."""
        met = [(other, neighbours) for relation in RELATIONS for other, neighbours in enumerate(self.met(relation, number, at))]
        around = tuple((near.start - at, tuple(kinds[other][near.start : near.stop])) if near else None for other, near in met)
        return number, kinds[number][at], around


def _meeting(strips: tuple[Strip, ...], relation: Relation, passes: Sequence[tuple[Strip, ...]], at: int) -> list[range]:
    span: Span = getattr(strips[at], relation[1])
    found = []
    for others in passes:
        # Starts and stops grow along the axis, so those that meet a span lie side by side.
        first = bisect_right(others, span.start, key=lambda strip: getattr(strip, relation[0]).stop)
        found.append(range(first, max(first, bisect_left(others, span.stop, key=lambda strip: getattr(strip, relation[0]).start))))
    return found


class Dependencies:
    """The rules of every step of a plan.

    Args:
        passes: the plan's passes, in order.
        mode: decides the order of the steps within a pass, and what the first pass reads.
    """

    def __init__(self, passes: Sequence[TilePass], mode: Mode) -> None:
        self._is_coloured = mode != "linear"
        self._first_reads_image = mode == "independent"
        self._x = Overlaps([each.columns for each in passes], is_coloured=self._is_coloured)
        self._y = Overlaps([each.rows for each in passes], is_coloured=self._is_coloured)
        self._predecessors: dict[Event, frozenset[Event]] = {}
        self._known: dict[tuple[Event, int], set[Event]] = {}
        self._rules: dict[tuple[int, int, int], Rules] = {}

    def rank(self, place: Place) -> tuple[int, int, int, int]:
        """Sorts steps into plan order: by pass, then by colour where there are colours, then row by row."""
        colour = place.row % 2 * 2 + place.column % 2 if self._is_coloured else 0
        return place.number, colour, place.row, place.column

    def reads_image(self, place: Place) -> bool:
        """True if the step sees the image as it was; else the canvas as the steps before it left it."""
        return self._first_reads_image and place.number == 0

    def kind(self, place: Place) -> tuple[int, int, int]:
        """The same for steps whose surroundings are alike."""
        return place.number, self._y.kinds[place.number][place.row], self._x.kinds[place.number][place.column]

    def rules(self, place: Place) -> Rules:
        """What this step waits for, without what is implied; the same for all steps of a kind."""
        kind = self.kind(place)
        if kind not in self._rules:
            self._rules[kind] = self._found_rules(place)
        return self._rules[kind]

    def _found_rules(self, place: Place) -> Rules:
        cut, blend = Event(place, is_blend=False), Event(place, is_blend=True)
        before_cut, before_blend = self._necessary(cut), self._necessary(blend) - {cut}
        blended = [event.place for event in before_blend if event.is_blend]
        cut_first = [event.place for event in before_blend if not event.is_blend]
        return Rules(_seen_from(place, [event.place for event in before_cut]), _seen_from(place, blended), _seen_from(place, cut_first))

    def _necessary(self, event: Event) -> frozenset[Event]:
        """The direct predecessors that none of the others implies."""
        direct = self._direct(event)
        depth = DEPTH if len(direct) <= PRUNED_NEIGHBOURS else 2
        return direct.difference(*(self._events_before(each, depth) for each in direct))

    def _events_before(self, event: Event, depth: int) -> set[Event]:
        """What is known to come before an event by at most ``depth`` rules in a row."""
        if (event, depth) not in self._known:
            found: set[Event] = set()
            newest = {event}
            for _ in range(depth):
                newest = set().union(*(self._direct(each) for each in newest)) - found
                found |= newest
            self._known[event, depth] = found
        return self._known[event, depth]

    def _direct(self, event: Event) -> frozenset[Event]:
        """What must come before an event because of the pixels that the two share."""
        if event not in self._predecessors:
            self._predecessors[event] = frozenset(self._before_blend(event.place) if event.is_blend else self._before_cut(event.place))
        return self._predecessors[event]

    def _before_cut(self, place: Place) -> Iterator[Event]:
        if not self.reads_image(place):
            for other in self._earlier(WRITES_WHAT_IS_READ, place):
                yield Event(other, is_blend=True)

    def _before_blend(self, place: Place) -> Iterator[Event]:
        yield Event(place, is_blend=False)
        known = {event.place for event in self._direct(Event(place, is_blend=False))}
        for other in self._earlier(BOTH_WRITE, place):
            if other not in known:
                yield Event(other, is_blend=True)
        for other in self._earlier(READS_WHAT_IS_WRITTEN, place):
            if other not in known and not self.reads_image(other):
                yield Event(other, is_blend=False)

    def _earlier(self, relation: Relation, place: Place) -> Iterator[Place]:
        """The steps before this one whose boxes meet its box."""
        rank = self.rank(place)
        met = zip(self._y.met(relation, place.number, place.row), self._x.met(relation, place.number, place.column), strict=True)
        for number, (rows, columns) in enumerate(met):
            for row in rows:
                for column in columns:
                    other = Place(number, row, column)
                    if self.rank(other) < rank:
                        yield other


def _seen_from(place: Place, others: Sequence[Place]) -> tuple[Offset, ...]:
    return tuple(sorted((other.number, other.row - place.row, other.column - place.column) for other in others))
