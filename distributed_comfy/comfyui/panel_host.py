"""The panel as the node pack has it, on ComfyUI's own port; and this ComfyUI as its master."""
from __future__ import annotations

import atexit
import functools
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from distributed_comfy.comfyui.gpu_config import taken_over
from distributed_comfy.comfyui.pack import Pack
from distributed_comfy.errors import DistributedComfyError, OptionWrong
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.panel.callers import Callers
from distributed_comfy.panel.place import Kind, Master, TakenOver
from distributed_comfy.panel.routes import Panel
from distributed_comfy.serve.application import ServeOptions
from distributed_comfy.serve.server import serve_relay
from distributed_comfy.settings import Settings
from tasks.cluster import Cluster

_FOLDERS = ("output", "temp", "input")


class PackMaster:
    """See `panel.place.Master`.

    Args:
        pack: of this process; its parts may be absent.
    """

    def __init__(self, pack: Pack) -> None:
        self._pack = pack
        self._device = functools.cache(pack.host.device)

    def shown(self) -> dict[str, Any]:
        """As ``Master`` of openapi.json."""
        pack, session = self._pack, self._pack.session
        queue = pack.host.server.prompt_queue
        ordinary = pack.ordinary.status() if pack.ordinary is not None else None
        return {
            "version": pack.host.version, "address": f"{getattr(pack.host.server, 'address', '')}:{getattr(pack.host.server, 'port', '')}",
            "device": self._device(), "session": session.state, "reason": session.reason, "agent": session.workers.place,
            "agent_reason": session.workers.reason, "options": pack.options.model_dump(),
            "ordinary": ordinary.reason if ordinary is not None and ordinary.state in ("paused", "unfit") else "",
            "running": len(queue.currently_running), "waiting": len(queue.queue), "jobs": sorted(self.jobs()),
        }  # fmt: skip

    def jobs(self, *, over: bool = False) -> Collection[str]:
        """Of its prompts that are not over, or of all."""
        jobs, ordinary = self._pack.jobs, self._pack.ordinary
        return {*(jobs.ids(over=over) if jobs is not None else ()), *(ordinary.jobs(over=over) if ordinary is not None else ())}

    def change(self, changes: Mapping[str, Any]) -> None:
        """Change options of the pack."""
        if not changes:
            raise OptionWrong(name="(none)", reason='say which, like {"debug": true}')
        for name, value in changes.items():
            self._pack.change(name, value)

    def interrupt(self, job_id: str | None) -> int:
        """End the prompt of a job, or all prompts; those that wait leave the queue."""
        if job_id is None:
            return self._interrupt_all()
        prompt_id = self._prompt_of(job_id, over=False)
        if prompt_id is None:
            return 0
        jobs, ordinary, queue = self._pack.jobs, self._pack.ordinary, self._pack.host.server.prompt_queue
        if queue.delete_queue_item(lambda entry: str(entry[1]) == prompt_id):
            return 1
        running = jobs.running(prompt_id) if jobs is not None else []
        if ordinary is None or not ordinary.interrupt(prompt_id):
            self._end_here(prompt_id)
        if jobs is not None:
            jobs.interrupt(running)
        return 1

    def _interrupt_all(self) -> int:
        jobs, ordinary, queue = self._pack.jobs, self._pack.ordinary, self._pack.host.server.prompt_queue
        count = len(queue.queue) + len(queue.currently_running)
        queue.wipe_queue()  # first, so that nothing begins meanwhile
        running = jobs.running(None) if jobs is not None else []
        if ordinary is not None:
            ordinary.interrupt(None)
        if queue.currently_running:
            self._pack.host.nodes.interrupt_processing()
        if jobs is not None:
            jobs.interrupt(running)
        return count

    def _end_here(self, prompt_id: str) -> None:
        """Interrupt this ComfyUI where it runs this prompt, and not the next one meanwhile."""
        queue = self._pack.host.server.prompt_queue
        with queue.mutex:
            if any(str(entry[1]) == prompt_id for entry in queue.currently_running.values()):
                self._pack.host.nodes.interrupt_processing()

    def clear_memory(self) -> None:
        """As ComfyUI's own ``POST /free``."""
        queue = self._pack.host.server.prompt_queue
        queue.set_flag("unload_models", True)
        queue.set_flag("free_memory", True)

    def files(self, job_id: str) -> Sequence[str] | None:
        """What ComfyUI's history says that the prompt of a job has saved or shown."""
        prompt_id = self._prompt_of(job_id, over=True)
        if prompt_id is None:
            return None
        history = self._pack.host.server.prompt_queue.history.get(prompt_id) or {}
        folders = self._pack.host.folders
        found = []
        for shown in dict(history.get("outputs") or {}).values():
            for entry in (each for listed in shown.values() if isinstance(listed, (list, tuple)) for each in listed):
                path = _path_of(entry, folders)
                if path is not None:
                    found.append(str(path))
        return found

    def is_over(self, job_id: str) -> bool:
        """Whether ComfyUI neither runs nor will run the prompt of a job; it fills its history at the same moment."""
        prompt_id, queue = self._prompt_of(job_id, over=True), self._pack.host.server.prompt_queue
        with queue.mutex:
            return not any(str(entry[1]) == prompt_id for entry in (*queue.queue, *queue.currently_running.values()))

    def _prompt_of(self, job_id: str, *, over: bool) -> str | None:
        """The prompt that a job belongs to, also where it is over."""
        pack = self._pack
        for part in (pack.jobs, pack.ordinary):
            prompt_id: str | None = part.prompt_of(job_id, over=over) if part is not None else None
            if prompt_id is not None:
                return prompt_id
        return None


def _path_of(entry: Any, folders: Mapping[str, Path]) -> Path | None:
    """The file that an entry of a history names, where it lies in the folder that it is said to be in."""
    if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str) or entry.get("type", "output") not in _FOLDERS:
        return None
    folder = folders[entry.get("type", "output")].resolve()
    path = (folder / str(entry.get("subfolder") or "") / entry["filename"]).resolve()
    return path if path.is_relative_to(folder) and path.is_file() else None


class ComfyPlace:
    """See `panel.place.Place`.

    Args:
        pack: of this process.
    """

    kind: Kind = "comfyui"

    def __init__(self, pack: Pack) -> None:
        self.own = pack.session.settings
        self.out = pack.host.folders["output"]
        self.master: Master | None = PackMaster(pack)
        self._session = pack.session

    @property
    def settings(self) -> Settings:
        """Those of the cluster, once there is one."""
        try:
            return self.cluster().settings
        except DistributedComfyError:
            return self.own

    def cluster(self) -> Cluster:
        """The one that the session has now."""
        return self._session.cluster(0.0)

    def servers(self) -> Servers | None:
        """Where it is."""
        return self._session.servers

    def taken_over(self, text: str) -> TakenOver:
        """What a gpu_config.json says."""
        return taken_over(text, self.settings.host_name)

    def lead_here(self, ready: Callable[[str], None], stop: threading.Event) -> None:
        """To a relay of its own, so that nobody comes to this ComfyUI by it."""
        serve_relay(self.own, ServeOptions(port=0, tunnel=True, only_tunnel=True), lambda serving: ready(serving.join_url), stop)


def add_panel(pack: Pack, callers: Callers) -> Panel:
    """Add its routes to ComfyUI's, for those who have the token."""
    panel = Panel(ComfyPlace(pack))
    for route in panel.routes(callers.check_token):
        pack.host.server.routes.route(route.method, route.path)(route.handler)
    pack.host.server.app.on_shutdown.append(panel.end)
    # Before Python waits for the threads of pools; `atexit` would come after that.
    getattr(threading, "_register_atexit", atexit.register)(panel.halt)
    return panel
