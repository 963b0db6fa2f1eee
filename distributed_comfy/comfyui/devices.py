"""Which devices this host has, and which of them this ComfyUI computes on itself: a worker there would take its memory away."""
from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
from typing import Any

from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.surroundings import changed_variables, hides_devices
from distributed_comfy.engine.devices import CPU, Gpu, find_devices, nvidia_gpus, visible_gpus
from distributed_comfy.settings import Settings
from distributed_comfy.state.records import HostDevice

log = logging.getLogger(__name__)

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def by_ids(host: ComfyHost, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of workers with ids in CUDA_VISIBLE_DEVICES where the user has numbers there.

    A number means what CUDA counts in this process, the fastest GPU first if nothing else is said, and workers count as the driver does.

    Args:
        host: the ComfyUI of this process.
        environment: as this process was started with.
    """
    visible = environment.get(_VISIBLE) or ""
    overwritten = _VISIBLE in changed_variables(host.args)  # then what torch sees is not what the user wrote there
    if overwritten or not any(part.strip().isdigit() for part in visible.split(",")) or not _built_for_nvidia():
        return dict(environment)
    ids = [_unique_id(number) for number in range(importlib.import_module("torch").cuda.device_count())]
    known = {gpu.uuid for gpu in nvidia_gpus()}
    return {**environment, _VISIBLE: ",".join(ids)} if ids and known.issuperset(ids) else dict(environment)


def host_devices(host: ComfyHost, settings: Settings, environment: Mapping[str, str]) -> tuple[tuple[HostDevice, ...], frozenset[str]]:
    """The devices that workers may use, and the names of those that this ComfyUI uses.

    NVIDIA's driver is asked, then the torch that ComfyUI has loaded; another process only where ComfyUI's arguments hide devices from
    this one.

    Args:
        host: the ComfyUI of this process.
        settings: of workers.
        environment: of workers.
    """
    gpus = nvidia_gpus() if _built_for_nvidia() else []  # workers have the same torch
    devices = visible_gpus(gpus, environment.get(_VISIBLE))
    if not devices and (hides_devices(host.args) or sys.platform == "darwin"):
        devices = find_devices(settings, "comfyui", environment)
    devices = devices or _of_torch() or (CPU,)
    return devices, own_devices(host, devices, gpus, environment)


def own_devices(
    host: ComfyHost, devices: tuple[HostDevice, ...], gpus: list[Gpu], environment: Mapping[str, str]
) -> frozenset[str]:
    """Names of the devices that this ComfyUI computes on.

    Args:
        host: the ComfyUI of this process.
        devices: as workers count them.
        gpus: of NVIDIA, all of the host.
        environment: of workers.
    """
    device = host.model_management.get_torch_device()
    kind, number = str(device.type), device.index or 0
    if kind != "cuda":
        return frozenset({kind if kind in ("cpu", "mps") else f"{kind}:{number}"})
    unique = _unique_id(number)
    place = next((gpu.bus_id for gpu in gpus if unique and gpu.uuid == unique), "")
    if place:  # CUDA may count in another order than the driver, so the place on the bus tells
        return frozenset(found.name for found in devices if found.bus_id == place)
    return frozenset({f"cuda:{_position(host.args, number, environment)}"})


def _position(args: Any, number: int, environment: Mapping[str, str]) -> int:
    """Where a GPU of this process stands among those of workers, by numbers alone."""
    chosen = getattr(args, "cuda_device", None)
    first = chosen if chosen is not None else getattr(args, "default_device", None)
    if first is None:
        return number
    visible = environment.get(_VISIBLE) or environment.get("HIP_VISIBLE_DEVICES") or ""
    listed = [part.strip() for part in visible.split(",")]
    return listed.index(str(first)) if str(first) in listed else int(first) if str(first).isdigit() else 0


def _built_for_nvidia() -> bool:
    """Whether the torch of ComfyUI's interpreter can use NVIDIA's GPUs at all."""
    return importlib.import_module("torch").version.cuda is not None


def _unique_id(number: int) -> str:
    """As the driver's tool writes it; empty where torch does not tell."""
    facts = importlib.import_module("torch").cuda.get_device_properties(number)
    unique = str(getattr(facts, "uuid", ""))
    return unique if unique.startswith("GPU-") or not unique else f"GPU-{unique}"


def _of_torch() -> tuple[HostDevice, ...]:
    """What the torch of this process sees."""
    torch = importlib.import_module("torch")
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind, None)
        if module is not None and module.is_available():
            facts = [module.get_device_properties(number) for number in range(module.device_count())]
            return tuple(HostDevice(f"{kind}:{number}", fact.name, int(fact.total_memory)) for number, fact in enumerate(facts))
    return ()
