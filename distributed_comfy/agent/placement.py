"""Which CPUs each worker of a host gets, and how many threads: processes that all use all cores slow each other by a third and more.

A worker gets whole cores (all hardware threads of one, since two halves of a core are slower than one core) among those near its GPU.
Pure: `agent.topology` reads what the host has.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from distributed_comfy.cpu_list import format_cpus
from distributed_comfy.errors import WorkersFileWrong

GPU_THREADS = 4
"""A GPU's worker computes little on the CPU. Measured with 16 cores each: with 4 threads 1.25 to 1.58 s per item, with torch's own choice
1.94 to 2.31 s."""


@dataclass(frozen=True)
class Topology:
    """What a host has."""

    cores: tuple[tuple[int, ...], ...]
    """The cores that the agent may use, each as its logical CPUs; empty where the system does not tell."""
    near: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Device -> CPUs on its side of the machine; without those of which nobody knows."""
    cpu_limit: float = 0.0
    """CPU time that a container may use, in CPUs; 0: no limit."""


@dataclass(frozen=True)
class Wish:
    """One worker, as far as its place matters."""

    name: str
    devices: tuple[str, ...]
    cores: tuple[int, ...] = ()
    """CPUs that were chosen for it; empty: its share."""
    threads: int = 0
    """Threads that were chosen for it; 0: by its cores."""


@dataclass(frozen=True)
class Placement:
    """Where a worker runs."""

    cores: tuple[int, ...] = ()
    """Logical CPUs, sorted; empty: not bound."""
    threads: int = 0
    """0: torch's own choice."""


def plan_placement(wishes: Sequence[Wish], topology: Topology) -> dict[str, Placement]:
    """A place for each worker.

    Cores go by fair shares: those that fewest workers are near are dealt out first, each to the worker that has fewest so far, in runs of
    neighbours, which share caches.  Where there are more workers than cores, they share.

    Args:
        wishes: the workers that are to run, in order.
        topology: of the host.
    Raises:
        WorkersFileWrong: a worker names a CPU that the agent may not use.
    """
    allowed = {cpu for core in topology.cores for cpu in core}
    chosen = {wish.name: wish.cores for wish in wishes if wish.cores and topology.cores}
    for name, cpus in chosen.items():
        if absent := sorted(set(cpus) - allowed):
            reason = f"has CPUs {format_cpus(absent)}, which the agent may not use; it may use {format_cpus(allowed)}"
            raise WorkersFileWrong(source="the workers of this host", place=f"workers.{name}.cores", reason=reason)
    taken = {cpu for cpus in chosen.values() for cpu in cpus}
    free = [core for core in topology.cores if not taken.intersection(core)]
    asking = [wish for wish in wishes if wish.name not in chosen]
    cores = {**chosen, **_shares(asking, free or list(topology.cores), topology.near)}
    share = topology.cpu_limit / len(wishes) if wishes else 0.0
    return {wish.name: Placement(cores[wish.name], _threads(wish, cores[wish.name], topology, share)) for wish in wishes}


def _shares(wishes: Sequence[Wish], cores: Sequence[tuple[int, ...]], near: Mapping[str, frozenset[int]]) -> dict[str, tuple[int, ...]]:
    """The CPUs of each worker that left the choice to us."""
    usable = {wish.name: _near_cores(wish, cores, near) for wish in wishes}
    islands: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for core in cores:
        takers = tuple(wish.name for wish in wishes if core in usable[wish.name])
        if takers:
            islands.setdefault(takers, []).append(core)
    given: dict[str, list[tuple[int, ...]]] = {wish.name: [] for wish in wishes}
    for takers, parts in sorted(islands.items(), key=lambda island: len(island[0])):
        rest = iter(parts)
        for name, count in _deal(len(parts), {name: len(given[name]) for name in takers}).items():
            given[name] += [next(rest) for _ in range(count)]
    crowd = [wish.name for wish in wishes if not given[wish.name] and usable[wish.name]]
    for number, name in enumerate(crowd):  # more workers than cores
        given[name] = [usable[name][number % len(usable[name])]]
    return {name: tuple(sorted(cpu for core in parts for cpu in core)) for name, parts in given.items()}


def _near_cores(wish: Wish, cores: Sequence[tuple[int, ...]], near: Mapping[str, frozenset[int]]) -> list[tuple[int, ...]]:
    """Cores near one of its devices; all of them where there is none, or nobody knows."""
    sides = [near[device] for device in wish.devices if device in near]
    found = [core for core in cores if any(side.issuperset(core) for side in sides)]
    return found or list(cores)


def _deal(parts: int, have: Mapping[str, int]) -> dict[str, int]:
    """How many of ``parts`` each gets, so that all have as equally many as can be; at equal counts the first ones get more."""
    total = dict(have)
    for _ in range(parts):
        total[min(total, key=lambda name: total[name])] += 1
    return {name: total[name] - have[name] for name in have}


def _threads(wish: Wish, cpus: Iterable[int], topology: Topology, share: float) -> int:
    if wish.threads:
        return wish.threads
    own = set(cpus)
    cores = sum(1 for core in topology.cores if own.intersection(core))
    if not cores:
        return GPU_THREADS if _on_gpu(wish) else 0
    threads = min(cores, GPU_THREADS) if _on_gpu(wish) else cores
    return max(1, min(threads, int(share))) if share else threads


def _on_gpu(wish: Wish) -> bool:
    return wish.devices != ("cpu",)
