"""What an agent is told about the host that it is on."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from distributed_comfy.agent.configuration import HostConfiguration
from distributed_comfy.agent.launching import Surroundings
from distributed_comfy.agent.placement import Topology
from distributed_comfy.state.records import HostDevice


def _as_written(configuration: HostConfiguration) -> HostConfiguration:
    return configuration


@dataclass(frozen=True)
class HostFacts:
    """What an agent is told about its host; by `up`, or by the node pack."""

    devices: tuple[HostDevice, ...]
    topology: Topology
    survivors: Path
    """Folder for workers that outlive the agent."""
    surroundings: Surroundings = field(default_factory=Surroundings)
    """What workers take over from the process that the agent is in."""
    started_as: str = "`distributed-comfy up`"
    """What the user starts again so that all this is found out anew."""
    adjust: Callable[[HostConfiguration], HostConfiguration] = _as_written
    """What the file says, as this agent takes it."""
