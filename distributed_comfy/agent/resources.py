"""Memory and disk of this host, as the agent tells them."""
from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from distributed_comfy.state.records import HostResources


def read_resources(cache: Path) -> HostResources:
    """What there is now.

    Args:
        cache: where workers keep files; it need not be there yet.
    """
    memory, disk = psutil.virtual_memory(), _usage(cache)
    return HostResources(memory.total, memory.available, disk[0], disk[1])


def _usage(folder: Path) -> tuple[int, int]:
    """Total and free bytes of the file system of a folder, or of the nearest one above it that is there; zeros where nobody tells."""
    for place in (folder, *folder.absolute().parents):
        try:
            found = shutil.disk_usage(place)
        except OSError:
            continue
        return found.total, found.free
    return 0, 0
