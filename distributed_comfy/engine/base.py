"""The protocol that every engine follows, and what goes in and comes out of one run."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from distributed_comfy.messages import Capability, RunHistory, RunRequest
from distributed_comfy.state.records import DeviceMemory
from distributed_comfy.state.status import EngineReport


class Sink(Protocol):
    """Where a running engine reports; its methods may be called from any thread and never block on the network."""

    def progress(self, node_id: str, value: int, maximum: int) -> None:
        """A node did ``value`` of ``maximum`` steps."""

    def preview(self, node_id: str, image: bytes) -> None:
        """A picture of the work so far, JPEG or PNG bytes."""

    def said(self, event: str, facts: dict[str, Any]) -> None:
        """ComfyUI said this to its browser; only where `RunRequest.echoes` asks for it."""


@dataclass(frozen=True)
class CapturedValue:
    """A value that a sink node took, still as the engine holds it."""

    node_id: str
    slot: str
    list_index: int
    value: Any
    """Tensor, or a dict of tensors and scalars, or a scalar."""


@dataclass(frozen=True)
class OutputFile:
    """A file that an output node wrote."""

    node_id: str
    path: Path
    name: str
    """Relative to its folder, with ``/``."""
    folder: Literal["output", "temp"]


@dataclass(frozen=True)
class RunOutcome:
    """What one run gave, before anything is shipped."""

    captures: Sequence[CapturedValue] = ()
    files: Sequence[OutputFile] = ()
    outputs: dict[str, Any] = field(default_factory=dict)
    """node id -> ui dict, as in ComfyUI's history."""
    blocked: tuple[str, ...] = ()
    """Sinks among the targets that got nothing because something upstream was blocked or lazily skipped."""
    history: RunHistory | None = None
    """As `ItemResult.history`."""


class Engine(Protocol):
    """Runs one prompt at a time on one device.

    ``run`` is called from one thread only; ``interrupt`` and ``describe`` may come from another while it runs.
    """

    name: str

    def describe(self) -> Capability:
        """Node classes, model lists, versions and device, read afresh."""

    def run(self, request: RunRequest, sink: Sink) -> RunOutcome:
        """Execute a prompt, in which input files and claim are in place (`engine.inputs.place_inputs`).

        The files of the outcome lie in the worker's ``outgoing/<claim id>``, out of the way of the next run.

        Raises:
            NodeFailed: a node raised; fields node_id, class_type, exception_type, exception_message, traceback.
            WorkerLacks: validation misses something that this worker does not have.
            ValidationRefused: validation refuses for a reason that holds on every worker.
            ComfyUIDropped: engine `attach` only; somebody else ended the prompt.
            OutOfMemory: the device's memory is full; it was freed before this was raised.
            ItemInterrupted: `interrupt` was called for this claim.
            SinkDidNotRun: a target sink did not execute and nothing upstream explains it.
        """

    def interrupt(self, claim_id: str) -> None:
        """Stop the run of this claim at its next step; remembered if it has not begun, forgotten once it ended."""

    def memory(self) -> DeviceMemory | None:
        """Memory of the device, by whomever it is used; called from any thread, also while it runs.  None where that is not known."""

    def free(self) -> None:
        """Unload models and give device memory back."""

    def close(self) -> None:
        """End; the engine is not used again."""


@runtime_checkable
class Reporting(Protocol):
    """An engine that can tell more about itself than its capability; not every one can."""

    def report(self) -> EngineReport:
        """Packs and loaded models; called every second from another thread while it runs, so it must be cheap and change nothing."""
