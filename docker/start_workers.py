"""Starts one ``worker_entry.py`` for each GPU that this container may use (else one for the CPU), and starts again what ends.

A worker that ends leaves the others alone.  SIGTERM is passed on: every worker finishes its item or gives it back, then this ends.
All settings are ``DC_`` variables (docs/settings.md).
"""
from __future__ import annotations

import argparse
import logging
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from types import FrameType

from worker_names import write_names

from distributed_comfy.engine.locate import choose_devices, choose_engine
from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.settings import Settings, child_environment, read_settings, slug

log = logging.getLogger("start_workers")

_POLL_S = 0.2
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0
"""A worker that ran for this long is started again without a pause growing."""
_NO_GPU_STATUS = 78


@dataclass
class Place:
    """One device and the worker on it."""

    name: str
    device: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    """When it is started again; monotonic."""
    pause_s: float = _PAUSE_S
    statuses: list[int] = field(default_factory=list)
    """Exit status of each worker that ended here."""


class Workers:
    """The workers of this container.

    Args:
        settings: of this process; each worker gets them with its own device and name.
        devices: one worker each.
    """

    def __init__(self, settings: Settings, devices: list[str]) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._places = [Place(worker_name(settings, device, len(devices)), device) for device in devices]

    @property
    def names(self) -> list[str]:
        """Names under which they register."""
        return [place.name for place in self._places]

    def serve(self) -> int:
        """Until a signal ends it; exit status 0 where every worker ended in order then."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        while not self._stopping.is_set():
            for place in self._places:
                self._tend(place)
            self._stopping.wait(_POLL_S)
        return max(self._end(place) for place in self._places)

    def _tend(self, place: Place) -> None:
        now = time.monotonic()
        if place.process is None:
            if now >= place.start_at:
                self._start(place)
            return
        status = place.process.poll()
        if status is None:
            return
        place.pause_s = _PAUSE_S if now - place.started_at > _STEADY_S else min(2 * place.pause_s, _LONGEST_PAUSE_S)
        place.process, place.start_at = None, now + place.pause_s
        log.warning("worker %s ended with status %d; it is started again in %.0f s", place.name, status, place.pause_s)

    def _start(self, place: Place) -> None:
        environment = child_environment(self._settings, device=place.device, worker_name=place.name)
        place.process = subprocess.Popen([sys.executable, "-m", "worker_entry"], env=environment, stdin=subprocess.DEVNULL)
        place.started_at = time.monotonic()
        if self._stopping.is_set():  # the signal came while this one was being started
            place.process.terminate()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """A second signal is passed on, too: workers then give their items back at once."""
        self._stopping.set()
        for place in self._places:
            if place.process is not None and place.process.returncode is None:
                place.process.send_signal(number)

    def _end(self, place: Place) -> int:
        """Workers end by themselves within DC_DRAIN_TIMEOUT_S; the container's grace period is longer."""
        return abs(place.process.wait()) if place.process is not None else 0


def worker_name(settings: Settings, device: str, devices: int) -> str:
    """``pc1-cuda0``; `Settings.worker_name` as it is where there is one device only."""
    if settings.worker_name and devices == 1:
        return settings.worker_name
    return f"{settings.worker_name or settings.host_name}-{slug(device.replace(':', ''))}"


def main() -> int:
    """Exit status of the container."""
    parser = argparse.ArgumentParser(description="One worker for each GPU of this container.")
    parser.add_argument("--require-gpu", action="store_true", help="end with an error instead of using the CPU")
    require_gpu = parser.parse_args().require_gpu
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)-7s %(message)s")
    try:
        settings = read_settings()
        devices = choose_devices(settings, choose_engine(settings), child_environment(settings))
    except DistributedComfyError as error:
        log.error("%s", error)
        return error.exit_code
    if require_gpu and devices == ["cpu"] and not settings.device:
        log.error("this container sees no GPU: install the NVIDIA Container Toolkit on the host, then `docker run --rm --gpus all "
                  "IMAGE nvidia-smi -L` must list it; DC_DEVICE=cpu runs on the CPU all the same")
        return _NO_GPU_STATUS
    workers = Workers(settings, devices)
    write_names(workers.names)
    log.info("workers of this container: %s", ", ".join(workers.names))
    return workers.serve()


if __name__ == "__main__":
    sys.exit(main())
