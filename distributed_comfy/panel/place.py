"""What serves the panel: `distributed-comfy serve`, or the node pack inside a ComfyUI; and what only the latter has."""
from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.settings import Settings
from tasks.cluster import Cluster

Kind = Literal["serve", "comfyui"]


@dataclass(frozen=True)
class TakenOver:
    """What another project's configuration says, in our words."""

    workers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name, as `agent.configuration.WorkerConfiguration` has them."""
    options: dict[str, bool] = field(default_factory=dict)
    """Of the node pack; only those that it names."""
    dropped: tuple[tuple[str, str], ...] = ()
    """Where something stands that is not taken over, and why."""


TakeOver = Callable[[str], TakenOver]
"""See `Place.taken_over`."""


class Master(Protocol):
    """The ComfyUI that serves the page; each method may wait, and is called in a thread."""

    def shown(self) -> dict[str, Any]:
        """As ``Master`` of openapi.json; waits for nothing."""

    def jobs(self, *, over: bool = False) -> Collection[str]:
        """Ids of the jobs of its prompts that are not over; with ``over`` also of those that are, for a while."""

    def change(self, changes: Mapping[str, Any]) -> None:
        """Change options, all or, where one cannot be, those before it.

        Raises:
            OptionWrong: see `comfyui.options.OptionsFile.change`.
        """

    def interrupt(self, job_id: str | None) -> int:
        """End the prompt of a job (None: all of its prompts, waiting ones too); how many were ended."""

    def clear_memory(self) -> None:
        """Let this ComfyUI unload its models as soon as nothing runs."""

    def files(self, job_id: str) -> Sequence[str] | None:
        """Paths of what a job's prompt saved; None where it is not known to be one of its own, empty until it is over."""

    def is_over(self, job_id: str) -> bool:
        """Whether a job's prompt saves nothing more."""


class Place(Protocol):
    """What either host of the panel gives."""

    kind: Kind
    own: Settings
    """As this process was given them."""
    out: Path
    """Where results of jobs that are submitted here usually go."""
    master: Master | None

    @property
    def settings(self) -> Settings:
        """As they are in the cluster, which may have invited this host under another name."""

    def cluster(self) -> Cluster:
        """The open cluster.

        Raises:
            ClusterUnavailable: there is none, and why.
        """

    def servers(self) -> Servers | None:
        """Where it is; None where it is not known yet."""

    def taken_over(self, text: str) -> TakenOver:
        """What a gpu_config.json says.

        Raises:
            ImportRefused: it is none.
        """

    def lead_here(self, ready: Callable[[str], None], stop: threading.Event) -> None:
        """Lead a public address to this cluster until ``stop`` is set; ``ready`` is told it.

        Raises:
            TunnelMissing, TunnelFailed: there is none.
        """
