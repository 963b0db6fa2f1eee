"""Reads from Linux which cores the agent may use, which of them are near which GPU, and what a container is limited to."""
from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from distributed_comfy.agent.placement import Topology
from distributed_comfy.cpu_list import parse_cpus
from distributed_comfy.state.records import HostDevice

SYSTEM = Path("/sys")


def read_topology(devices: Iterable[HostDevice], root: Path = SYSTEM) -> Topology:
    """What `placement.plan_placement` needs to know; without cores where the system does not tell.

    Args:
        devices: of the host.
        root: of the kernel's files.
    """
    if not hasattr(os, "sched_getaffinity"):
        return Topology(())
    allowed = os.sched_getaffinity(0)
    near = {device.name: _near(device.bus_id, root) & allowed for device in devices if device.bus_id}
    return Topology(_cores(allowed, root), {name: frozenset(cpus) for name, cpus in near.items() if cpus}, cpu_limit(root))


def _cores(allowed: set[int], root: Path) -> tuple[tuple[int, ...], ...]:
    """Whole cores as far as they are allowed, by their first CPU."""
    cores = {cpu: tuple(sorted(_siblings(cpu, root) & allowed | {cpu})) for cpu in allowed}
    return tuple(sorted(set(cores.values())))


def _siblings(cpu: int, root: Path) -> set[int]:
    return set(_cpus(root / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))


def _near(bus_id: str, root: Path) -> set[int]:
    return set(_cpus(root / "bus/pci/devices" / bus_id / "local_cpulist"))


def _cpus(path: Path) -> tuple[int, ...]:
    with suppress(OSError, ValueError):  # a virtual machine or container that does not say
        return parse_cpus(path.read_text(encoding="ascii").strip())
    return ()


def cpu_limit(root: Path = SYSTEM) -> float:
    """CPU time of this container, in CPUs; 0 where it has no limit."""
    with suppress(OSError, ValueError):
        quota, period = (root / "fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period) if quota != "max" else 0.0
    return 0.0
