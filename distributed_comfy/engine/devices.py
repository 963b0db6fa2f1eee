"""Finds what engines of this host can compute on, without torch in this process: the driver's tool, else a torch that is asked.

NVIDIA's own tool comes with every driver, also on Windows and in containers, so it is asked rather than a binding that has to be
installed beside it.  For all others the interpreter that runs the engine is the one that knows: its torch has ROCm, XPU or MPS, or not.
"""
from __future__ import annotations

import json
import logging
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distributed_comfy.engine.locate import find_comfyui, find_interpreter
from distributed_comfy.settings import EngineName, Settings
from distributed_comfy.state.records import HostDevice

log = logging.getLogger(__name__)

_QUERY = ("index", "uuid", "name", "memory.total", "pci.bus_id")
_TOOL_TIMEOUT_S = 20.0
_TORCH_TIMEOUT_S = 180.0
"""The first import of torch from a slow disk takes minutes."""
_MIB = 2**20
CPU = HostDevice("cpu", platform.processor() or platform.machine())
"""What every host has."""

_ASK_TORCH = """
import gc
gc.disable()
import json, torch
found = []
def add(kind, module):
    for number in range(module.device_count()):
        facts = module.get_device_properties(number)
        found.append([f"{kind}:{number}", facts.name, int(facts.total_memory)])
if torch.cuda.is_available():
    add("cuda", torch.cuda)
elif hasattr(torch, "xpu") and torch.xpu.is_available():
    add("xpu", torch.xpu)
elif torch.backends.mps.is_available():
    found.append(["mps", "", 0])
print("\\nDEVICES", json.dumps(found))
gc.freeze()
"""
"""Without the garbage collector, as in `distributed_comfy.lasting_imports`, which that interpreter may not have."""


@dataclass(frozen=True)
class Gpu:
    """A row of ``nvidia-smi``."""

    index: int
    uuid: str
    model: str
    memory_bytes: int
    bus_id: str


def find_devices(settings: Settings, engine: EngineName, inherited: Mapping[str, str]) -> tuple[HostDevice, ...]:
    """The GPUs that engines of this host may use, in the order of their numbers, else the CPU.

    Args:
        settings: name a device, ComfyUI and its interpreter.
        engine: the built-in one stays on the CPU.
        inherited: this process's variables, which may leave it some of the host's GPUs only.
    Raises:
        SettingInvalid: no such ComfyUI or interpreter.
    """
    if engine == "builtin":
        return (CPU,)
    if sys.platform == "darwin":
        return (HostDevice("mps", platform.machine()),) if platform.machine() == "arm64" else (CPU,)
    found = visible_gpus(nvidia_gpus(), inherited.get("CUDA_VISIBLE_DEVICES"))
    return found or parse_torch_answer(_ask_torch(find_interpreter(settings, find_comfyui(settings)))) or (CPU,)


def nvidia_gpus() -> list[Gpu]:
    """The GPUs of this host that NVIDIA's driver lists, whichever of them a process may use."""
    return parse_gpus(_ask_tool())


def parse_gpus(text: str) -> list[Gpu]:
    """The GPUs in what ``nvidia-smi --query-gpu`` printed; lines that are no row of its table (warnings) are left out."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(_QUERY) or not cells[0].isdigit():
            continue
        index, uuid, model, memory, bus_id = cells
        # "[N/A]" where memory is shared with the CPU, as on a DGX Spark
        found.append(Gpu(int(index), uuid, model, int(memory) * _MIB if memory.isdigit() else 0, _short_bus_id(bus_id)))
    return found


def visible_gpus(gpus: Sequence[Gpu], visible: str | None) -> tuple[HostDevice, ...]:
    """Those that a process may use, numbered as that counts them.

    Args:
        gpus: of the host.
        visible: CUDA_VISIBLE_DEVICES, with numbers or with ids that may be shortened; None or empty: all of them. Parts of a GPU (MIG) have
            ids only, and each is a device here, though a process sees no more than one of them.
    """
    chosen = list(gpus)
    if visible:
        chosen = []
        for wanted in (part.strip() for part in visible.split(",")):
            match = _mig_instance(wanted) if wanted.startswith("MIG-") and gpus else _wanted_gpu(gpus, wanted)
            if match is None:
                break  # CUDA itself stops at the first one that is not there
            chosen.append(match)
    return tuple(HostDevice(f"cuda:{number}", gpu.model, gpu.memory_bytes, gpu.bus_id) for number, gpu in enumerate(chosen))


def _mig_instance(uuid: str) -> Gpu:
    """A MIG instance: the tool's table has GPUs only, so nothing else is known."""
    return Gpu(-1, uuid, "MIG instance", 0, "")


def _wanted_gpu(gpus: Sequence[Gpu], wanted: str) -> Gpu | None:
    by_id = wanted.startswith("GPU-")
    return next((gpu for gpu in gpus if (gpu.uuid.startswith(wanted) if by_id else str(gpu.index) == wanted)), None)


def parse_torch_answer(text: str) -> tuple[HostDevice, ...]:
    """The devices in what a torch was asked; none where it has no GPU or there is no torch."""
    line = next((line for line in reversed(text.splitlines()) if line.startswith("DEVICES ")), "DEVICES []")
    try:
        return tuple(HostDevice(str(name), str(model), int(memory)) for name, model, memory in json.loads(line.removeprefix("DEVICES ")))
    except (ValueError, TypeError) as error:
        log.warning("torch named its devices in a way that cannot be read (%s): using the CPU", error)
        return ()


def _short_bus_id(bus_id: str) -> str:
    """``00000000:81:00.0`` as Linux has it: a domain of four digits, in small letters."""
    found = re.fullmatch(r"([0-9a-f]{4,8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])", bus_id.lower())
    return f"{found[1][-4:]}:{found[2]}" if found else ""


def _ask_tool() -> str:
    program = shutil.which("nvidia-smi")
    return _output([program, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"], _TOOL_TIMEOUT_S) if program else ""


def _ask_torch(python: str) -> str:
    log.info("no NVIDIA driver answers; asking the torch of %s for devices", python)
    return _output([python, "-c", _ASK_TORCH], _TORCH_TIMEOUT_S)


def _output(command: Sequence[str], timeout_s: float) -> str:
    """What a program printed; empty where it failed."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s does not answer (%s)", command[0], error)
        return ""
    if done.returncode != 0:
        log.info("%s ended with status %d: %s", command[0], done.returncode, (done.stderr.strip().splitlines() or [""])[-1])
        return ""
    return done.stdout
