"""How a worker of this host is started: its configuration, its place and the agent's own settings become an environment."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed_comfy.agent.configuration import HostConfiguration, WorkerConfiguration, relative_to
from distributed_comfy.agent.placement import Placement
from distributed_comfy.agent.processes import OwnedProcess, SurvivingProcess, Survivor, WorkerProcess
from distributed_comfy.cpu_list import format_cpus
from distributed_comfy.orchestrator.arguments import join_arguments, split_arguments
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.orchestrator.worker_command import worker_folder
from distributed_comfy.settings import Settings, child_environment, redact_url

log = logging.getLogger(__name__)

_CUDA_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Else CUDA counts the fastest GPU first, and ``cuda:0`` is not the one that the driver's tool calls 0."""


_GPU_MEMORY = ("--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram")
"""ComfyUI takes one of these or --cpu, and ends where it is given both."""


@dataclass(frozen=True)
class Plan:
    """What decides how a worker is started; a running one with another plan is outdated."""

    worker: WorkerConfiguration
    placement: Placement
    debug: bool
    outlives: bool = False
    """It goes on when the agent ends."""


@dataclass(frozen=True)
class Surroundings:
    """What workers take over from the process that their agent is in."""

    environment: Mapping[str, str] | None = field(default=None, repr=False)
    """Variables; None: those of the process. They may hold secrets."""
    arguments: tuple[str, ...] = ()
    """Of ComfyUI, before a worker's own; for workers that run the agent's own ComfyUI."""


class Launcher:
    """Starts workers, and takes back those that outlived an agent.

    Args:
        settings: of the agent.
        servers: where workers connect.
        config_folder: from which relative paths in the configuration are meant.
        survivors: folder for what is written down about workers that outlive the agent.
        surroundings: of the agent.
    """

    def __init__(
        self, settings: Settings, servers: Servers, config_folder: Path, survivors: Path, surroundings: Surroundings = Surroundings()
    ) -> None:
        self._settings = settings
        self._servers = servers
        self._config_folder = config_folder
        self._survivors = survivors
        self._surroundings = surroundings
        where = "embedded" if servers.embedded else redact_url(servers.redis_url)
        self._cluster = f"{where} {settings.key_prefix}"

    def folder(self, name: str) -> Path:
        """Where a worker's logs lie."""
        return worker_folder(self._settings, name)

    def launch(self, name: str, plan: Plan) -> WorkerProcess:
        """Start a worker.

        Raises:
            OSError: it cannot be started.
        """
        environment = self.environment(plan)
        if words := self.arguments(plan.worker):
            log.info("worker %s: its ComfyUI gets the arguments %s", name, join_arguments(words))
        if not plan.outlives:
            return OwnedProcess(name, environment, self.folder(name))
        self._survivors.mkdir(mode=0o700, parents=True, exist_ok=True)
        survivor = Survivor(name, 0, "", self._cluster, plan.placement.cores, plan.placement.threads)
        return SurvivingProcess.start(survivor, environment, self.folder(name), self._file(name))

    def find_survivors(self) -> list[SurvivingProcess]:
        """Workers that outlived an agent before; those of another cluster are left alone, and told."""
        found = [survivor for file in sorted(self._survivors.glob("*.json")) if (survivor := SurvivingProcess.find(file)) is not None]
        ours = [one for one in found if one.survivor.cluster == self._cluster]
        for one in found:
            if one not in ours:
                log.warning("worker %s still works at %s; `kill %d` ends it", one.survivor.name, one.survivor.cluster, one.pid)
        return ours

    def environment(self, plan: Plan) -> dict[str, str]:
        """All variables of a worker.

        One that outlives the agent must find an embedded Redis by itself, as one of its owners, because that ends with the last of them.
        """
        worker = relative_to(plan.worker, self._config_folder)
        arguments = self.arguments(worker)
        changes: dict[str, Any] = {
            "device": worker.device,
            "threads": plan.placement.threads or self._settings.threads,
            "cores": format_cpus(plan.placement.cores),
            "started_by": "agent",
        }
        optional = {
            "engine": worker.engine,
            "comfyui_url": worker.comfyui_url,
            "comfyui_path": worker.comfyui_path,
            "comfyui_python": worker.comfyui_python,
            "comfyui_args": join_arguments(arguments),
            "worker_tags": ",".join(worker.tags),
            "log_level": "DEBUG" if plan.debug else "",
        }
        changes.update({name: value for name, value in optional.items() if value})
        if not (plan.outlives and self._servers.embedded):
            changes.update(redis_url=self._servers.redis_url, blob_url=self._servers.blob_url)
        inherited = child_environment(self._settings, self._surroundings.environment, **changes)
        return {**_CUDA_ORDER, **inherited, **worker.environment}

    def arguments(self, worker: WorkerConfiguration) -> tuple[str, ...]:
        """Those of a worker's ComfyUI, apart from what every worker's has; its own come last and win."""
        engine = worker.engine or self._settings.engine or "comfyui"
        if worker.comfyui_path or engine != "comfyui" or not self._surroundings.arguments:
            return worker.comfyui_args
        given = self._surroundings.arguments
        if worker.device == "cpu":
            given = tuple(word for word in given if word not in _GPU_MEMORY)
        return (*given, *(worker.comfyui_args or split_arguments(self._settings.comfyui_args)))

    def _file(self, name: str) -> Path:
        return self._survivors / f"{name}.json"


def plan_for(configuration: HostConfiguration, name: str, placement: Placement) -> Plan:
    """How a worker is to be started."""
    return Plan(configuration.workers[name], placement, configuration.debug)
