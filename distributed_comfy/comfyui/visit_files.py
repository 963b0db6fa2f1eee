"""The files that items of workers leave in this ComfyUI's folders, and their removal."""
from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.engine.attach.captures import CLAIM_MARK, file_entries
from distributed_comfy.engine.attach.shelf import FOLDER

IDLE_S = 30.0
"""How long the input files of a worker stay after its last item: the next one of the same job needs them again."""


class VisitFiles:
    """Removes what is named by a claim or a worker, and nothing else.

    Args:
        host: this ComfyUI.
    """

    def __init__(self, host: ComfyHost) -> None:
        self._host = host
        self._due: dict[str, float] = {}
        self._lock = threading.Lock()
        """Of `_due`; held for moments."""
        self._removing = threading.Lock()
        """Held as long as the removal of input files takes."""

    @property
    def expected(self) -> bool:
        """Whether any worker may have input files here."""
        with self._lock:
            return bool(self._due)

    def expect(self, worker: str) -> None:
        """A worker begins an item, and may bring files; never waits for a disk."""
        with self._lock:
            self._due[worker] = time.monotonic() + IDLE_S

    def names(self, worker: str) -> list[str]:
        """Names of the files that a worker has in the input folder; once it is expected, none of them is about to be removed."""
        folder = self._input(worker)
        with self._removing:
            return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def forget_idle(self, busy: Collection[str]) -> None:
        """Remove the input files of workers that have had no item for a while.

        Args:
            busy: workers with an item.
        """
        for worker in busy:
            self.expect(worker)
        with self._lock:
            idle = [worker for worker, due in self._due.items() if time.monotonic() >= due]
        for worker in idle:
            with self._removing:
                self._forget(worker)

    def _forget(self, worker: str) -> None:
        """Remove its input files, unless it has begun an item meanwhile."""
        with self._lock:
            due = self._due.get(worker)
        if due is None or time.monotonic() < due:
            return
        _remove_folder(self._input(worker))
        with self._lock:
            if self._due.get(worker) == due:  # else it waits for `names`, and brings its files again
                del self._due[worker]

    def remove(self, claim_id: str, prompt_id: str) -> None:
        """Remove what an item wrote, and its entry in the history, where people would take it for their own."""
        self._remove_previews(prompt_id)
        self._host.server.prompt_queue.delete_history_item(prompt_id)
        for kind in ("output", "temp"):
            _remove_folder(self._host.folders[kind] / FOLDER / claim_id)

    def _remove_previews(self, prompt_id: str) -> None:
        """Of nodes that run anew each time; what others show may lie in ComfyUI's cache."""
        entry = self._host.server.prompt_queue.get_history(prompt_id).get(prompt_id)
        temp = self._host.folders["temp"].resolve()
        for node_id, ui in (entry or {}).get("outputs", {}).items():
            node = entry["prompt"][2].get(node_id) or {}
            for file in file_entries(ui) if CLAIM_MARK in node.get("inputs", {}) else ():
                path = (temp / str(file.get("subfolder") or "") / file["filename"]).resolve()
                if file.get("type") == "temp" and path.is_relative_to(temp):
                    path.unlink(missing_ok=True)

    def _input(self, worker: str) -> Path:
        return self._host.folders["input"] / FOLDER / worker


def _remove_folder(folder: Path) -> None:
    """With the one that all of ours lie in, once it is empty."""
    if folder.is_dir():
        shutil.rmtree(folder)
    with suppress(OSError):
        folder.parent.rmdir()
