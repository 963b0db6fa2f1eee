"""Where the numbers come from: hardware, versions, and how busy the machine was with other things."""
from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from distributed_comfy.state.providers import PROVIDERS, program_version

PACKAGES = ("celery", "kombu", "redis", "hiredis", "msgpack", "numpy", "torch", "xxhash")


def facts(root: Path) -> dict[str, str]:
    """What a reader needs to compare numbers with those of another machine.

    Args:
        root: of the checkout.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _first_line(["git", "-C", str(root), "rev-parse", "--short", "HEAD"]) or "unknown",
        "CPU": f"{_cpu_name()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB" if hasattr(os, "sysconf") else "unknown",
        "priority": _priority(),
        "system": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Redis": _redis_version(),
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
    }


def load() -> str:
    """Processes that ran or wanted to, on average over the last minute: more than the benchmark's own few mean a disturbed run."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _priority() -> str:
    """Whether other work on this machine had to wait for the benchmarks; their processes inherit it."""
    if not hasattr(os, "sched_getscheduler"):
        return "normal"
    if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
        return "real-time (chrt -r), because the machine did other work; memory and disk were still shared"
    return "normal" if os.getpriority(os.PRIO_PROCESS, 0) == 0 else f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _redis_version() -> str:
    found = ((provider.name, program) for provider in PROVIDERS if (program := provider.find()) is not None)
    return next((f"{program_version(program)} ({name})" for name, program in found), "none")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(none)"


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0].strip()
