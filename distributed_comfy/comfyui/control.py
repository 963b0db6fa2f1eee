"""What the pack's routes read and do, as JSON values: workers of this host and of the cluster, their logs, jobs, invitations.

Everything here may wait for Redis or an agent, so the routes call it in threads.
"""
from __future__ import annotations

from dataclasses import asdict
from typing import Any

from distributed_comfy.comfyui.pack import Pack
from distributed_comfy.errors import OptionWrong, OrderRefused, WorkerUnknown
from distributed_comfy.host_messages import HostVerb
from distributed_comfy.orchestrator.inviting import InviteOptions, invite, invites_of, revoke
from distributed_comfy.settings import slug
from distributed_comfy.state.records import JobState, WorkerState
from distributed_comfy.state.worker_log import LogLine
from tasks.cluster import Cluster
from tasks.host_orders import order_for, send_order

VERBS: tuple[HostVerb, ...] = ("start", "stop", "restart", "enable", "disable", "drain", "resume", "clear-memory", "edit", "remove")
"""What a worker can be told through a route; `add` has one of its own."""
MOST_LINES = 10_000
MASTER = "comfyui"
"""Starter of what a ComfyUI with the pack is itself, while it takes part in its own jobs: no worker for others."""
_WAIT_S = 5.0
_ORDER_S = 15.0


class Control:
    """One per pack."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack

    # -- workers ---------------------------------------------------------------------------------------------------------
    def workers(self) -> dict[str, Any]:
        """Those of this host as its agent keeps them, and all that work for the cluster now."""
        cluster = self._cluster()
        found = cluster.workers.workers()
        statuses = cluster.statuses.read([worker.facts.name for worker in found])
        return {
            "host": cluster.settings.host_name,
            "local": self._pack.session.workers.shown(),
            "cluster": [
                {**_shown_worker(worker), "status": asdict(status) if (status := statuses.get(worker.facts.name)) else None}
                for worker in found
            ],
            "hosts": [
                {"host": record.host, "version": record.package_version, "workers": [own.name for own in record.workers]}
                for record in cluster.hosts.hosts()
            ],
        }  # fmt: skip

    def add_worker(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Give this host one more worker; it starts unless its fields have ``enabled`` false."""
        return self._local("add", name, fields=fields)

    def order(self, verb: HostVerb, name: str, **arguments: Any) -> dict[str, Any]:
        """Tell a worker something, wherever it is.

        Raises:
            WorkerUnknown: no agent keeps such a worker.
            OrderRefused: its agent does not do that.
        """
        if self.kept(name):
            return self._local(verb, name, **arguments)
        cluster = self._cluster()
        keeper = next((record.host for record in cluster.hosts.hosts() if any(own.name == name for own in record.workers)), "")
        if not keeper:
            raise WorkerUnknown(name=name)
        answer = send_order(cluster, keeper, order_for(verb, name, **arguments), timeout_s=_ORDER_S)
        return {**answer.facts, "text": answer.text}

    def kept(self, name: str) -> bool:
        """Whether the agent of this host keeps a worker of this name."""
        record = self._pack.session.workers.record()
        return record is not None and any(own.name == name for own in record.workers)

    def log_lines(self, name: str, lines: int) -> list[LogLine]:
        """The last lines that a worker and its engine have logged, as the table has them; no file is opened.

        Raises:
            WorkerUnknown: there is no such worker, and no log of one.
        """
        if not name or name != slug(name):
            raise WorkerUnknown(name=name[:100])
        cluster = self._cluster()
        found = cluster.logs.last(name, max(1, min(lines, MOST_LINES)))
        if not found and not self.kept(name) and all(worker.facts.name != name for worker in cluster.workers.workers()):
            raise WorkerUnknown(name=name)
        return found

    # -- jobs ------------------------------------------------------------------------------------------------------------
    def jobs(self) -> list[dict[str, Any]]:
        """All jobs of the cluster, oldest first."""
        return [_shown_job(job_id, state) for job_id, state in self._cluster().jobs.jobs().items()]

    def has_job(self, job_id: str) -> bool:
        """Whether the cluster has a job, or this ComfyUI a prompt, of this id that is not over."""
        running, waiting = self._pack.host.server.prompt_queue.get_current_queue()
        if any(entry[1] == job_id for entry in (*running, *waiting)):
            return True
        state = self._cluster().jobs.jobs().get(job_id)
        return state is not None and not state.ended

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        """Stop a job.

        Raises:
            JobUnknown: there is none of this id.
        """
        cluster = self._cluster()
        cluster.jobs.cancel(job_id, "cancelled in ComfyUI")
        return _shown_job(job_id, cluster.jobs.job_state(job_id))

    # -- invitations -----------------------------------------------------------------------------------------------------
    def invite(self, options: InviteOptions) -> dict[str, Any]:
        """Let one more host work for this cluster; the command to run there is a password."""
        self._cluster()
        token = invite(self._pack.session.settings, options)
        return {
            "host": token.host, "url": token.url, "expires_ms": token.expires_ms, "fingerprint": token.fingerprint,
            "command": f"distributed-comfy up --join {token.text}",
        }  # fmt: skip

    def invites(self) -> list[dict[str, Any]]:
        """Invited hosts."""
        names = ("name", "url", "created_ms", "expires_ms", "joined_ms", "seen_ms", "connections")
        with invites_of(self._pack.session.settings) as (invites, _):
            return [{name: getattr(each, name) for name in names} for each in invites.all()]

    def revoke(self, name: str) -> dict[str, Any]:
        """Shut an invited host out."""
        revoke(self._pack.session.settings, name)
        return {"host": name, "revoked": True}

    # -- options and memory ----------------------------------------------------------------------------------------------
    def change_options(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Change options of the pack, all or, where one cannot be, those before it.

        Raises:
            OptionWrong: see `OptionsFile.change`.
        """
        if not changes:
            raise OptionWrong(name="(none)", reason='say which, like {"debug": true}')
        for name, value in changes.items():
            self._pack.change(name, value)
        return self._pack.options.model_dump()

    def clear_memory(self) -> list[str]:
        """Free the devices of this ComfyUI and of the running workers of this host; gives the names of those workers."""
        queue = self._pack.host.server.prompt_queue
        queue.set_flag("unload_models", True)
        queue.set_flag("free_memory", True)
        record, told = self._pack.session.workers.record(), []
        for worker in record.workers if record else ():
            if worker.phase in ("running", "draining"):
                try:
                    self._local("clear-memory", worker.name)
                except OrderRefused:  # it has just ended, and so its memory is free
                    continue
                told.append(worker.name)
        return told

    def _cluster(self) -> Cluster:
        return self._pack.session.cluster(_WAIT_S)

    def _local(self, verb: HostVerb, name: str, **arguments: Any) -> dict[str, Any]:
        answer = self._pack.session.workers.order(verb, name, **arguments)
        return {**answer.facts, "text": answer.text}


def _shown_worker(worker: WorkerState) -> dict[str, Any]:
    facts = worker.facts
    return {
        "name": facts.name, "host": facts.host, "device": facts.device, "engine": facts.engine, "engine_version": facts.engine_version,
        "state": worker.state, "items": list(worker.claims), "drained": worker.drained, "tags": list(facts.tags),
        "guest": facts.started_by == MASTER,
    }  # fmt: skip


def _shown_job(job_id: str, state: JobState) -> dict[str, Any]:
    names = ("state", "reason", "counts", "submitter", "priority", "title", "host", "created_ms", "ended_ms")
    return {"job": job_id, **{name: getattr(state, name) for name in names}}
