"""Counters in the state Redis that only grow, for metrics: the scripts add to them with the transition they count, and once each.

    wait|<kind>|<ms>     items claimed that had been claimable for at most so long; <ms> is a bound below, ``inf``, or ``sum``
    run|<kind>|<ms>      items done that took the engine at most so long
    retry|<cause>        attempts that ended without a result and made the item claimable again: error code or ``released``
    failure|<cause>      items that failed for good, by error code
    job|<state>          jobs ended: ``done``, ``failed``, ``cancelled``
    lost workers         workers that went without leaving
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BOUNDS_MS = (10, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000)
"""Upper bounds of the histograms' buckets."""


@dataclass(frozen=True)
class Histogram:
    """How many took how long."""

    buckets: tuple[tuple[float, int], ...]
    """(upper bound in seconds, how many took at most so long), rising; the last bound is infinite and counts all."""
    sum_s: float


def lua() -> str:
    """Lua source that defines ``BOUNDS_MS``."""
    return f"local BOUNDS_MS = {{{', '.join(map(str, BOUNDS_MS))}}}"


def histogram(tallies: Mapping[str, int], what: str, kind: str) -> Histogram:
    """One histogram.

    Args:
        tallies: the whole hash.
        what: ``wait`` or ``run``.
        kind: of item.
    """
    counts = [tallies.get(f"{what}|{kind}|{bound}", 0) for bound in (*BOUNDS_MS, "inf")]
    bounds = [*(bound / 1000 for bound in BOUNDS_MS), float("inf")]
    buckets = tuple((bound, sum(counts[: k + 1])) for k, bound in enumerate(bounds))
    return Histogram(buckets, tallies.get(f"{what}|{kind}|sum", 0) / 1000)


def by_label(tallies: Mapping[str, int], what: str) -> dict[str, int]:
    """``<what>|<label>`` as label -> count."""
    return {label: count for name, count in tallies.items() for first, _, label in (name.partition("|"),) if first == what and label}
