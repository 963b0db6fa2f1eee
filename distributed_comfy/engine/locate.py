"""Finds what a worker runs with: ComfyUI's tree, an interpreter for it, the engine, the device; all without torch."""
from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from distributed_comfy.errors import SettingInvalid
from distributed_comfy.settings import EngineName, Settings

log = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 20.0
_VISIBLE = {"cuda": ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), "xpu": ("ONEAPI_DEVICE_SELECTOR",)}
_NO_DEVICE = "-1"
AMD_DRIVER = Path("/dev/kfd")
ATTACHED = "attach"
"""Stands for the device of a running ComfyUI, which is that ComfyUI's own affair."""


def find_comfyui(settings: Settings) -> Path | None:
    """ComfyUI's folder: the setting, else ``~/comfy/ComfyUI``; None where there is none.

    Raises:
        SettingInvalid: the setting names a folder that is no ComfyUI.
    """
    if settings.comfyui_path is not None:
        tree = settings.comfyui_path.expanduser().absolute()
        if not _is_tree(tree):
            raise SettingInvalid(name="COMFYUI_PATH", reason=f"{tree} is not ComfyUI's folder (it has no main.py and nodes.py)")
        return tree
    tree = Path.home() / "comfy" / "ComfyUI"
    return tree if _is_tree(tree) else None


def choose_engine(settings: Settings) -> EngineName:
    """The setting, else ``comfyui`` where a tree is found."""
    return settings.engine or ("comfyui" if find_comfyui(settings) is not None else "builtin")


def find_interpreter(settings: Settings, tree: Path | None) -> str:
    """The interpreter for an engine: the setting, else the tree's own, else this one.

    Args:
        tree: ComfyUI's folder; None for the built-in engine, which runs under this interpreter.
    Raises:
        SettingInvalid: the setting names no program.
    """
    if tree is None:
        return sys.executable
    if settings.comfyui_python:
        program = shutil.which(os.path.expanduser(settings.comfyui_python))
        if program is None:
            raise SettingInvalid(name="DC_COMFYUI_PYTHON", reason=f"{settings.comfyui_python} is not a program")
        return os.path.abspath(program)
    own = [tree / folder / place for folder in (".venv", "venv") for place in ("bin/python", "Scripts/python.exe")]
    own.append(tree.parent / "python_embeded" / "python.exe")  # the portable build's own spelling
    # Not resolved: a virtual environment's python is a link, and what it links to knows nothing of it.
    return next((str(path) for path in own if path.exists()), sys.executable)


def choose_device(settings: Settings, engine: EngineName) -> str:
    """The setting, else the first GPU; the built-in engine stays on the CPU, which every torch has."""
    if engine == "attach":
        return ATTACHED
    if settings.device:
        return settings.device
    if engine == "builtin":
        return "cpu"
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "mps"
    return "cuda:0" if _has_gpu() else "cpu"


def choose_devices(settings: Settings, engine: EngineName, inherited: Mapping[str, str]) -> list[str]:
    """Devices for several workers of this host, in turn: every GPU that they may use, else what `choose_device` says.

    Args:
        inherited: this process's variables, which may leave it some of the host's GPUs only.
    """
    if engine == "attach":  # the same ComfyUI for all of them
        return [""]
    device = choose_device(settings, engine)
    if settings.device or device != "cuda:0":
        return [device]
    visible = next((inherited[name] for name in _VISIBLE["cuda"] if inherited.get(name)), "")
    count = len(visible.split(",")) if visible else listed_gpus()
    return [f"cuda:{number}" for number in range(max(1, count))]


def device_environment(device: str, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables that let a process see this device only, as its first one; they must be set before torch is loaded.

    Args:
        device: ``cpu``, ``mps``, ``cuda:1``, ``cuda:0,1`` or ``xpu:0``; numbers count the devices that this process may use.
        inherited: this process's variables, which may leave it some of the host's devices only.
    Raises:
        SettingInvalid: the device is not among them.
    """
    kind, _, numbers = device.partition(":")
    if kind == "cpu":
        return dict.fromkeys(_VISIBLE["cuda"], _NO_DEVICE)
    if kind == "xpu":
        return dict.fromkeys(_VISIBLE["xpu"], f"level_zero:{numbers}")
    if kind != "cuda":
        return {}
    environment = {}
    for name in _VISIBLE["cuda"]:
        ours = (inherited or {}).get(name, "")
        environment[name] = ",".join(_renumbered(number, ours.split(",") if ours else None, device) for number in numbers.split(","))
    return environment


def default_threads(workers: int) -> int:
    """CPU threads for each of several workers of one host."""
    return max(1, (os.cpu_count() or 1) // max(1, workers))


def _renumbered(number: str, ours: list[str] | None, device: str) -> str:
    if ours is None:
        return number
    if int(number) >= len(ours):
        raise SettingInvalid(name="DC_DEVICE", reason=f"{device} is not among the {len(ours)} devices that this process may use ({ours})")
    return ours[int(number)].strip()


def _is_tree(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "nodes.py").is_file()


def _has_gpu() -> bool:
    """Ask the driver's tool, because a tool without a GPU is common in containers."""
    if shutil.which("nvidia-smi") is None:
        return AMD_DRIVER.exists()
    return listed_gpus() > 0


def listed_gpus() -> int:
    """How many GPUs ``nvidia-smi -L`` lists; 0 where there is no such tool, or it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        found = subprocess.run([program, "-L"], capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s does not answer (%s): using the CPU", program, error)
        return 0
    return sum(line.startswith(b"GPU ") for line in found.stdout.splitlines()) if found.returncode == 0 else 0
