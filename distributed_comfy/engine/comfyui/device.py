"""The device class: everything outside the prompt that can change the bits of a result."""
from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from distributed_comfy.engine.flags import telling_flags
from distributed_comfy.engine.options import EngineOptions


def device_class(options: EngineOptions, version: str, torch: Any) -> str:
    """Device, driver, torch build, ComfyUI version and flags in one line; equal lines promise equal bytes.

    Args:
        options: for the device and the user's ComfyUI arguments.
        version: of the ComfyUI tree.
        torch: the torch module.
    """
    parts = [_hardware(options.device, torch), f"torch {torch.__version__}", f"ComfyUI {version}"]
    flags = telling_flags(options.comfyui_args)
    return ", ".join([*parts, *([flags] if flags else [])])


def unusable_device(device: str, torch: Any) -> str:
    """Why torch cannot use a worker's device, with the remedy; empty where it can, or where that is not known.

    Args:
        device: of the worker; only this one is visible to torch here.
        torch: the torch module; None if it was not imported.
    """
    kind, _, numbers = device.partition(":")
    backend = getattr(torch, kind, None)
    if torch is None or kind not in ("cuda", "xpu"):
        return ""
    python, build = sys.executable, f"torch {torch.__version__}"
    if kind == "cuda" and not (torch.version.cuda or getattr(torch.version, "hip", None)):
        remedy = f"use --device cpu, or install for {python} the CUDA torch that ComfyUI's page tells"
        return f"{python} has {build}, which is built without CUDA, and so cannot use {device}; {remedy}"
    seen = backend.device_count() if backend is not None else 0
    if seen >= len(numbers.split(",")):
        return ""
    remedy = "name another --device (nvidia-smi -L lists NVIDIA's), or mend the driver"
    return f"{build} of {python} finds {seen or 'no'} device of {device} on this host; {remedy}"


def _hardware(device: str, torch: Any) -> str:
    kind = device.split(":")[0]
    if kind == "cuda" and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, driver {_driver()}"
    if kind == "xpu" and hasattr(torch, "xpu") and torch.xpu.is_available():
        return str(torch.xpu.get_device_name(0))
    return f"{kind} {_processor()}, {torch.get_num_threads()} threads"


def _driver() -> str:
    """Version of the graphics driver; ``?`` where no tool tells it."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "?"
    return answer.stdout.strip().split("\n")[0] or "?"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
