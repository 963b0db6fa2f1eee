"""Which names in ComfyUI's folders the master's own nodes are about to use.

A node asks ComfyUI once where its counter stands and then writes one file after the other, over whatever lies there.  So nobody else
may place a file of that name until the node is done.
"""
from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distributed_comfy.errors import RunInterrupted

log = logging.getLogger(__name__)

UNKNOWN_SAVE_S = 2.0
"""How long a save is respected of which nobody knows when it is over: whoever began it is no node of a prompt."""
_POLL_S = 0.02


class MasterNodes(Protocol):
    """What runs in this ComfyUI itself."""

    def current(self) -> tuple[str, str] | None:
        """Prompt and node in whose thread this is called; None outside of nodes."""

    def is_running(self, prompt_id: str, node_id: str) -> bool:
        """Whether this node has not come to its end."""


@dataclass(frozen=True)
class _Save:
    place: tuple[str, str]
    node: tuple[str, str] | None
    began: float


class SaveWatch:
    """Sees each look at a counter; one per process.

    Args:
        folder_paths: ComfyUI's module, whose ``get_save_image_path`` is wrapped.
        nodes: tell when a save is over.
    """

    def __init__(self, folder_paths: Any, nodes: MasterNodes) -> None:
        self._nodes = nodes
        self._lock = threading.RLock()
        self._open: list[_Save] = []
        self.look = folder_paths.get_save_image_path
        """ComfyUI's own function: folder, file name, counter, subfolder and prefix."""
        folder_paths.get_save_image_path = self._watched(self.look)

    @contextmanager
    def alone(self, folder: Path, stem: str, stop: threading.Event) -> Iterator[None]:
        """While the context lasts, no node of this ComfyUI saves under this name; waits for those that do.

        Raises:
            RunInterrupted: ``stop`` was set before.
        """
        place = _place(str(folder), stem)
        while True:
            with self._lock:
                if not self._is_open(place):
                    yield
                    return
            if stop.wait(_POLL_S):
                raise RunInterrupted(when="before its files had their names")

    def _watched(self, look: Any) -> Any:
        @functools.wraps(look)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                answer = look(*args, **kwargs)
                try:
                    self._note(answer)
                except Exception:  # what ComfyUI saves itself is no affair of ours
                    log.exception("a save of this ComfyUI is not seen; please report it")
            return answer

        return watched

    def _note(self, answer: Any) -> None:
        self._forget()
        self._open.append(_Save(_place(str(answer[0]), str(answer[1])), self._nodes.current(), time.monotonic()))

    def _forget(self) -> None:
        self._open = [save for save in self._open if not self._is_over(save)]

    def _is_open(self, place: tuple[str, str]) -> bool:
        self._forget()
        return any(save.place == place for save in self._open)

    def _is_over(self, save: _Save) -> bool:
        if save.node is None:
            return time.monotonic() - save.began > UNKNOWN_SAVE_S
        return not self._nodes.is_running(*save.node)


def _place(folder: str, stem: str) -> tuple[str, str]:
    return os.path.normcase(os.path.abspath(folder)), os.path.normcase(stem)
