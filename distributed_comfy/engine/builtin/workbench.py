"""What the built-in node classes work with: folders, device, the run's progress and its wish to stop."""
from __future__ import annotations

import io
from typing import TYPE_CHECKING, ClassVar

from PIL import Image

from distributed_comfy.engine.base import Sink
from distributed_comfy.engine.folders import WorkFolders
from distributed_comfy.errors import ItemInterrupted
from distributed_comfy.messages import RunRequest, item_id

if TYPE_CHECKING:
    import torch


class Workbench:
    """One per engine; `begin` sets the run, the executor sets the node."""

    def __init__(self, folders: WorkFolders, device: str) -> None:
        """Args:
        folders: of this worker.
        device: as torch names it, ``cpu`` or ``cuda``.
        """
        self.folders = folders
        self.device = device
        self.node_id = ""
        """The node that executes."""
        self._request: RunRequest | None = None
        self._sink: Sink | None = None
        self._interrupted: set[str] = set()

    def begin(self, request: RunRequest, sink: Sink) -> None:
        """A run starts; `check` raises at once if it was interrupted before."""
        self._request, self._sink = request, sink

    def end(self) -> None:
        """The run is over; its interrupt is forgotten."""
        if self._request is not None:
            self._interrupted.discard(self._request.claim_id)
        self._request = self._sink = None
        self.node_id = ""

    def interrupt(self, claim_id: str) -> None:
        """Let the run of this claim stop at its next `check`; from any thread."""
        self._interrupted.add(claim_id)

    def check(self) -> None:
        """Called between steps.

        Raises:
            ItemInterrupted: the run is to stop.
        """
        if self._request is not None and self._request.claim_id in self._interrupted:
            raise ItemInterrupted(item_id=item_id(self._request.job_id, self._request.index))

    def progress(self, value: int, maximum: int) -> None:
        """The executing node did ``value`` of ``maximum`` steps."""
        if self._sink is not None:
            self._sink.progress(self.node_id, value, maximum)

    def preview(self, image: torch.Tensor) -> None:
        """Show [H, W, 3] float32 in [0, 1] as the work so far."""
        if self._sink is not None:
            picture = io.BytesIO()
            Image.fromarray((image * 255).byte().cpu().numpy()).save(picture, "JPEG", quality=85)
            self._sink.preview(self.node_id, picture.getvalue())


class WorkbenchNode:
    """Base of the built-in node classes."""

    bench: ClassVar[Workbench]
    """Set in the subclass that the registry makes for each engine."""
