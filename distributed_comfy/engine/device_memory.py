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
    torch = _torch_with_a_gpu()
    if torch is None:
        return None
    try:
        free, total = torch.cuda.mem_get_info(0)
    except RuntimeError:  # the device is in an error state, which whoever runs on it reports
        return None
    return DeviceMemory(int(free), int(total))


def device_identity() -> tuple[str, str]:
    """Name and UUID of the first device that this process sees; empty where `device_memory` knows nothing, the UUID also on old torch."""
    torch = _torch_with_a_gpu()
    if torch is None:
        return "", ""
    try:
        properties = torch.cuda.get_device_properties(0)
    except (RuntimeError, AssertionError):
        return "", ""
    uuid = str(getattr(properties, "uuid", ""))
    return str(properties.name), uuid if not uuid or uuid.startswith("GPU-") else f"GPU-{uuid}"


def _torch_with_a_gpu() -> Any:
    """The torch of this process; None where it has none, or uses no GPU, and while another thread imports it, which has no ``cuda`` yet."""
    torch: Any = sys.modules.get("torch")
    is_initialized = getattr(getattr(torch, "cuda", None), "is_initialized", None)
    return torch if is_initialized is not None and is_initialized() else None
