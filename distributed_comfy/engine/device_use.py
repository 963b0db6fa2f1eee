"""How much of its device, and of its host's memory, a worker uses: asked of the driver and the system, without torch."""
from __future__ import annotations

import logging
import platform
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from distributed_comfy.state.records import DeviceMemory
from distributed_comfy.state.status import DeviceUse, EngineReport, HostUse

log = logging.getLogger(__name__)

_HUNG_INTERVALS = 5
"""A figure that was not renewed for so many intervals is not shown any more: a driver can hang whoever asks it."""


class DeviceWatch:
    """Asks in a thread of its own; whoever wants to know gets the last answer at once.

    Args:
        device: of the worker, ``cpu`` or ``cuda:0``.
        interval_s: how often to ask.
    """

    def __init__(self, device: str, interval_s: float) -> None:
        self._on_cpu = device == "cpu"
        self._interval_s = interval_s
        self._driver: Any = None if self._on_cpu or not device.startswith("cuda") else _open_driver()
        self._processor = _processor_name() if self._on_cpu else ""
        self._uuid = ""
        self._percent: int | None = None
        self._memory: DeviceMemory | None = None
        self._answered_at = time.monotonic()

    def run(self, stopped: threading.Event) -> None:
        """Ask until ``stopped``."""
        _processor_percent()  # the first answer is of no interval
        while not stopped.wait(self._interval_s):
            self._percent, self._memory = self._ask()
            self._answered_at = time.monotonic()

    def use(self, report: EngineReport, memory: DeviceMemory | None) -> DeviceUse:
        """The device now.

        Args:
            report: of the engine, which knows which device it has.
            memory: what the engine says of its device, for where the driver says nothing.
        """
        self._uuid = report.device_uuid
        fresh = time.monotonic() - self._answered_at <= _HUNG_INTERVALS * self._interval_s
        seen = (self._memory if fresh else None) or memory
        return DeviceUse(
            name=report.device_name or self._processor,
            utilisation_percent=self._percent if fresh else None,
            used_bytes=seen.total_bytes - seen.free_bytes if seen else None,
            total_bytes=seen.total_bytes if seen else None,
        )

    def _ask(self) -> tuple[int | None, DeviceMemory | None]:
        if self._on_cpu:
            return _processor_percent(), None
        return _ask_driver(self._driver, self._uuid) if self._driver and self._uuid else (None, None)


def host_use(engine_pid: int | None) -> HostUse:
    """Memory of this process, of the engine process, and of the host."""
    try:
        memory = psutil.virtual_memory()
    except (OSError, ValueError):  # a container that hides it
        return HostUse()
    return HostUse(_resident(None), _resident(engine_pid) if engine_pid else 0, memory.total - memory.available, memory.total)


def _resident(pid: int | None) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0


def _processor_percent() -> int | None:
    """Of the whole host since the last call."""
    try:
        return round(float(psutil.cpu_percent()))
    except (OSError, ValueError):  # a container that hides it
        return None


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _open_driver() -> Any:
    """NVIDIA's library; None without it, its driver or its Python package."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.debug("the driver tells nothing about utilisation: %s", error)
        return None
    return pynvml


def _ask_driver(driver: Any, uuid: str) -> tuple[int | None, DeviceMemory | None]:
    """Utilisation in percent and memory; each None where the driver does not tell it, as of a part of a GPU."""
    percent, memory = None, None
    try:
        handle = driver.nvmlDeviceGetHandleByUUID(uuid)
        found = driver.nvmlDeviceGetMemoryInfo(handle)
        memory = DeviceMemory(int(found.free), int(found.total))
        percent = int(driver.nvmlDeviceGetUtilizationRates(handle).gpu)
    except driver.NVMLError as error:
        log.debug("the driver does not tell about %s: %s", uuid, error)
    return percent, memory
