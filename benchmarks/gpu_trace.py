"""Reads what gpu_nodes.py traces inside a ComfyUI process."""
from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rig import BenchmarkFailed

_POLL_S = 0.005


@dataclass(frozen=True)
class Event:
    """One line of a trace."""

    at: float
    """``time.time()``."""
    name: str
    """See `gpu_nodes`; with ``:begin`` or ``:end`` where it has a phase."""
    facts: dict[str, Any]


class Trace:
    """The growing trace of one ComfyUI process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: list[Event] = []
        self._read_bytes = 0

    def events(self, since: float = 0.0, until: float = float("inf")) -> list[Event]:
        """Events of a span of time, in order."""
        self._read_on()
        return [event for event in self._events if since <= event.at <= until]

    def count(self, name: str, since: float, until: float = float("inf")) -> int:
        """How often something happened."""
        return sum(event.name == name for event in self.events(since, until))

    def wait(self, name: str, count: int, since: float, *, timeout_s: float, alive: Callable[[], bool] = lambda: True) -> Event:
        """Wait until something has happened ``count`` times; the last of these events.

        Raises:
            BenchmarkFailed: it did not, within ``timeout_s``, or ``alive`` says that it never will.
        """
        give_up = time.monotonic() + timeout_s
        found = [event for event in self.events(since) if event.name == name]
        while len(found) < count:
            if time.monotonic() > give_up or not alive():
                raise BenchmarkFailed(f"{len(found)} of {count} events {name!r} within {timeout_s:.0f} s in {self.path}")
            time.sleep(_POLL_S)
            found += [event for event in self._read_on() if event.name == name]
        return found[count - 1]

    def _read_on(self) -> list[Event]:
        """The events since the last look."""
        with self.path.open("rb") as file:
            file.seek(self._read_bytes)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        events = [_event(line) for line in whole.splitlines()]
        self._events += events
        return events


def _event(line: bytes) -> Event:
    facts = json.loads(line)
    at, name, phase = facts.pop("at"), facts.pop("event"), facts.pop("phase", "")
    return Event(at, f"{name}:{phase}" if phase else name, facts)


@dataclass(frozen=True)
class Work:
    """What a span of a trace shows of several items, in seconds; each list holds one number per item or step."""

    periods: Sequence[float]
    """From the end of one item's decode to that of the next."""
    gaps: Sequence[float]
    """From the end of one item's decode to the first model call of the next: the device has nothing to do."""
    dispatches: Sequence[float]
    """From the end of one prompt to the beginning of the next, in the ComfyUI process."""
    steps: Sequence[float]
    """From one model call to the next of the same item."""
    decodes: Sequence[float]
    saves: Sequence[float]
    """Of SaveImage in the ComfyUI process."""
    busy: float
    """Share of the span, from the first model call to the end of the last decode, in which an item was sampled or decoded."""
    reads: int
    """Model files read."""
    moves: int
    """Models moved to the device."""
    peak_bytes: int
    """The most that torch had allocated."""


def work(events: Sequence[Event]) -> Work:
    """Read a span in which items ran one after the other."""
    firsts, ends, steps = _items(events)
    gaps = [first - end for end, first in zip(ends, firsts[1:], strict=False)]
    span = ends[-1] - firsts[0] if ends and firsts else 0.0
    return Work(
        periods=[later - end for end, later in itertools.pairwise(ends)],
        gaps=gaps,
        dispatches=_pauses(events),
        steps=steps,
        decodes=_durations(events, "decode"),
        saves=_durations(events, "save"),
        busy=1 - sum(gaps) / span if span else 0.0,
        reads=sum(event.name == "read" for event in events),
        moves=sum(event.name == "to_device" for event in events),
        peak_bytes=max((event.facts["peak"] for event in events if event.name == "prompt:end"), default=0),
    )


def _items(events: Sequence[Event]) -> tuple[list[float], list[float], list[float]]:
    """First model call of each item, end of each decode, and times between steps."""
    firsts: list[float] = []
    ends: list[float] = []
    steps: list[float] = []
    last: float | None = None
    for event in events:
        if event.name == "step":
            if last is None:
                firsts.append(event.at)
            else:
                steps.append(event.at - last)
            last = event.at
        elif event.name == "sample:end":
            last = None
        elif event.name == "decode:end":
            ends.append(event.at)
    return firsts, ends, steps


def _durations(events: Sequence[Event], name: str) -> list[float]:
    begins = [event.at for event in events if event.name == f"{name}:begin"]
    ends = [event.at for event in events if event.name == f"{name}:end"]
    return [end - begin for begin, end in zip(begins, ends, strict=False)]


def _pauses(events: Sequence[Event]) -> list[float]:
    begins = [event.at for event in events if event.name == "prompt:begin"]
    ends = [event.at for event in events if event.name == "prompt:end"]
    return [begin - end for end, begin in zip(ends, begins[1:], strict=False)]
