"""The line of text at each node that waits for a job.  The page keeps the last one it was sent, so however a prompt ends, that is said."""
from __future__ import annotations

import threading
from typing import NamedTuple

from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.master_job import MasterJob

STARTING = "starting"
"""Until there is something to count; it takes the place of what the run before has left."""
_SAID = {"interrupted": "interrupted", "error": "failed"}
"""Endings of a prompt after which a text is not true any more."""


class _Shown(NamedTuple):
    job: MasterJob
    client_id: str
    """Whose page it is."""


class NodeTexts:
    """One per process; safe to use from several threads.

    Args:
        host: this ComfyUI.
    """

    def __init__(self, host: ComfyHost) -> None:
        self._host = host
        self._shown: dict[str, _Shown] = {}
        """Node -> the job whose text is there, as long as that may become untrue."""
        self._lock = threading.Lock()

    def show(self, job: MasterJob, node_id: str, text: str) -> None:
        """Put a text there, for the client whose prompt runs."""
        client_id = self._host.client_id
        if client_id is None:
            return
        with self._lock:
            self._shown[node_id] = _Shown(job, client_id)
        self._host.show_text(text or STARTING, node_id, client_id)

    def stays(self, node_id: str) -> None:
        """What stands there is how it ended: the node has got all of it."""
        with self._lock:
            self._shown.pop(node_id, None)

    def over(self, job: MasterJob, ending: str) -> None:
        """The job's prompt has ended, or is about to: say so where the text would be of before.

        Args:
            ending: see `queue_watch.Ending`.
        """
        with self._lock:
            found = {node_id: shown for node_id, shown in self._shown.items() if shown.job is job}
            for node_id in found:
                del self._shown[node_id]
        if ending not in _SAID:
            return
        count = job.progress.look().count
        for node_id, shown in found.items():
            self._host.show_text(f"{_SAID[ending]}{f' at {count}' if count else ''}", node_id, shown.client_id)
