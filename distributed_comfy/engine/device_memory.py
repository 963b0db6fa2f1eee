"""Which device the engine uses and how much memory that has left, for whoever watches the cluster."""
from __future__ import annotations

import sys
from typing import Any

from distributed_comfy.state.records import DeviceMemory


def device_memory() -> DeviceMemory | None:
    """Memory of the first device that this process sees, by whomever it is used; called while the engine may be running.

    Returns:
        None on the CPU, before the engine has begun to use a GPU (asking would begin it), and where the driver does not answer.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        free, total = torch.cuda.mem_get_info(0)
    except RuntimeError:  # the device is in an error state, which whoever runs on it reports
        return None
    return DeviceMemory(int(free), int(total))


def device_identity() -> tuple[str, str]:
    """Name and UUID of the first device that this process sees; empty where `device_memory` knows nothing, the UUID also on old torch."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return "", ""
    try:
        properties = torch.cuda.get_device_properties(0)
    except (RuntimeError, AssertionError):
        return "", ""
    uuid = str(getattr(properties, "uuid", ""))
    return str(properties.name), uuid if not uuid or uuid.startswith("GPU-") else f"GPU-{uuid}"
