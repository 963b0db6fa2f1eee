"""The agent as an object: the workers of one host, kept as they are configured, and the host's record in the table.

Whoever has one calls `start`, lets it be, and calls `end`; `agent.orders` obeys orders on it.  All methods may be called from any thread.
"""
from __future__ import annotations

import logging
import os
import platform
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import redis

from distributed_comfy import __version__
from distributed_comfy.agent.configuration import HostConfiguration, WorkerConfiguration, shown_configuration
from distributed_comfy.agent.facts import HostFacts
from distributed_comfy.agent.launching import Launcher, Plan
from distributed_comfy.agent.placement import Placement, Wish, plan_placement
from distributed_comfy.agent.processes import SurvivingProcess, can_outlive
from distributed_comfy.agent.resources import read_resources
from distributed_comfy.agent.rotated_log import cut_if_long
from distributed_comfy.agent.supervised import SupervisedWorker
from distributed_comfy.agent.workers_file import WorkersFile
from distributed_comfy.cpu_list import format_cpus
from distributed_comfy.engine.locate import choose_engine
from distributed_comfy.errors import AgentRunning, DistributedComfyError, InvitationInUse, InviteRefused, WorkerUnknown
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.orchestrator.worker_command import ENGINE_LOG, WORKER_LOG, last_words, log_size
from distributed_comfy.state.records import HostRecord, HostWorker
from tasks.admission import Admission
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

_TICK_S = 0.2
_LOOK_S = 1.0
"""How often the table is asked how the workers are."""
_LOGS_S = 5.0
_ENDING_POLL_S = 0.1
_JOIN_S = 15.0


class Agent:
    """The workers of this host.

    Args:
        cluster: open connections; closed by whoever opened them.
        servers: where workers connect.
        file: of the configuration; without it the host has no workers yet.
        facts: of the host.
    """

    def __init__(self, cluster: Cluster, servers: Servers, file: WorkersFile, facts: HostFacts) -> None:
        self.cluster = cluster
        self.servers = servers
        self.file = file
        self.facts = facts
        self.settings = cluster.settings
        self.host = self.settings.host_name
        self.incarnation = uuid.uuid4().hex
        self.seal = secrets.token_hex(32)
        """Signs the orders of whoever may read it in the table, see `distributed_comfy.host_messages.sign_order`."""
        self.lock = threading.RLock()
        self.configuration = HostConfiguration()
        self._launcher = Launcher(self.settings, servers, file.path.parent, facts.survivors, facts.surroundings)
        self._workers: dict[str, SupervisedWorker] = {}
        self._plans: dict[str, Plan] = {}
        self._running_as: dict[str, Plan] = {}
        self._said_before: dict[str, int] = {}
        """How long each worker's log was when it was started."""
        self._leaving: set[str] = set()
        self._telling = threading.Lock()
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._ailing = False
        self._admission = Admission(cluster.redis_url, self.settings.refused_ttl_s, shown=servers.invited_to)
        self._told: HostRecord | None = None
        self._due: dict[str, float] = {}

    # -- life ------------------------------------------------------------------------------------------------------------
    def take_place(self) -> None:
        """Take the host's place in the table, before anything is written down or started for it.

        Raises:
            WorkersFileWrong: the file cannot be used.
            AgentRunning: the host has an agent already.
        """
        self.use(self.file.read_or_empty())  # whoever sees the host from now on sees its workers
        try:
            self.cluster.hosts.take(self.record(), self.seal, self.settings.lease_ttl_s + 2 * self.settings.renew_interval_s)
        except AgentRunning as error:
            raise self._told_apart(error.fields) from error

    def leave_place(self) -> None:
        """Give it back."""
        with suppress(DistributedComfyError, redis.RedisError):  # then the record goes with its lease
            self.cluster.hosts.leave(self.host)

    def start(self) -> None:
        """Read the configuration, hold the host's place in the table, take workers back, and start those that are to run.

        Raises:
            WorkersFileWrong, SettingInvalid: the file cannot be used.
            AgentRunning: the host has an agent already.
        """
        self.take_place()  # again where it was taken before: looking for devices may have lasted longer than a lease
        with self.lock:
            for survivor in self._launcher.find_survivors():
                self._adopt(survivor)
            for name, worker in self._workers.items():
                if worker.process is None and name in self._plans and self._plans[name].worker.enabled and self.configuration.auto_launch:
                    self.begin(name)
        for work, called in ((self._keep, "agent"), (self._talk, "host record")):
            self._threads.append(threading.Thread(target=work, name=called, daemon=True))
            self._threads[-1].start()

    def end(self) -> None:
        """End the workers, unless they are to outlive their agent, and leave the table; returns when all that has happened.

        Where the cluster has shut this host out, nobody waits for what they have under way.
        """
        with self.lock:
            ending = [worker for worker in self._workers.values() if not self._goes_on(worker)]
            for worker in self._workers.values():
                if worker in ending:
                    worker.stop(at_once=self.shut_out is not None)
                elif worker.process is not None:
                    log.info("worker %s: goes on without the agent (pid %d); the next one takes it back", worker.name, worker.process.pid)
        while any(worker.process is not None for worker in ending):
            self._tend()  # here too, should the thread have died
            time.sleep(_ENDING_POLL_S)
        self._ending.set()
        for thread in self._threads:
            thread.join(_JOIN_S)
        if self.shut_out is None and not self._ailing:  # a table that hangs would be waited for
            self.leave_place()

    @property
    def wanted(self) -> frozenset[str]:
        """Names of the workers that are to run."""
        with self.lock:
            return frozenset(name for name, worker in self._workers.items() if worker.wanted)

    def stop_all(self) -> None:
        """Let the workers give their items back and end; those that are to outlive their agent go on."""
        with self.lock:
            for worker in self._workers.values():
                if not self._goes_on(worker):
                    worker.stop(at_once=True)

    def lose_servers(self) -> None:
        """The servers do not come back: the workers end at once, as there is nobody to give their items back to."""
        with self.lock:
            for worker in self._workers.values():
                if not self._goes_on(worker):
                    worker.stop(at_once=True, servers_gone=True)

    def end_at_once(self) -> None:
        """Give all items back and end; from a signal handler too, so it takes no lock and waits for nothing."""
        for worker in list(self._workers.values()):
            process = worker.process
            if process is not None and not self._goes_on(worker):
                with suppress(OSError):
                    process.ask_to_end()

    @property
    def shut_out(self) -> InviteRefused | None:
        """Why the cluster does not let this host in any more; None while it does."""
        return self._admission.verdict

    @property
    def alive(self) -> bool:
        """False where a thread of the agent has ended by a fault of ours; nobody would look after the workers then."""
        return all(thread.is_alive() for thread in self._threads)

    def _goes_on(self, worker: SupervisedWorker) -> bool:
        """Whether a worker is left running when the agent ends; one that was started to end with it never is."""
        return worker.process is not None and worker.process.outlives and not self.configuration.stop_with_owner

    # -- configuration ---------------------------------------------------------------------------------------------------
    def use(self, configuration: HostConfiguration) -> None:
        """Keep the host as this says from now on; running workers stay as they are until they are restarted.

        Raises:
            WorkersFileWrong: a worker names CPUs that are not there.
        """
        configuration = self.facts.adjust(configuration)
        placements = self.places(configuration)
        with self.lock:
            self.configuration = configuration
            outlives = not configuration.stop_with_owner and can_outlive()
            self._plans = {
                name: Plan(worker, placements.get(name, Placement()), configuration.debug, outlives)
                for name, worker in configuration.workers.items()
            }
            for name in configuration.workers:
                if name not in self._workers or name in self._leaving:
                    self._leaving.discard(name)
                    self._workers.setdefault(name, self._supervise(name))
            for name in set(self._workers) - set(configuration.workers):
                self._leaving.add(name)
                self._workers[name].stop()

    def change(self, alter: Callable[[dict[str, Any]], None], source: str) -> None:
        """Change the file and use what it then says; see `WorkersFile.change`."""
        with self.lock:
            self.use(self.file.change(alter, source, self.places))

    def places(self, configuration: HostConfiguration) -> dict[str, Placement]:
        """A place for each worker that is to run.

        Raises:
            WorkersFileWrong: a worker names CPUs that are not there.
        """
        placed = {name: worker for name, worker in configuration.workers.items() if worker.enabled and self._computes_here(worker)}
        return plan_placement([_wish(name, worker, self.settings.threads) for name, worker in placed.items()], self.facts.topology)

    def _computes_here(self, worker: WorkerConfiguration) -> bool:
        """Whether a worker is to have cores; one that drives another ComfyUI takes none from the others, unless it names some."""
        return self._engine_of(worker) != "attach" or worker.cores != "auto"

    def _engine_of(self, worker: WorkerConfiguration) -> str:
        return worker.engine or choose_engine(self.settings)

    # -- workers ---------------------------------------------------------------------------------------------------------
    def worker(self, name: str) -> SupervisedWorker:
        """A worker of this host.

        Raises:
            WorkerUnknown: none is called so.
        """
        if name not in self._workers or name in self._leaving:
            raise WorkerUnknown(name=name)
        return self._workers[name]

    def begin(self, name: str, *, again: bool = False) -> None:
        """Start a worker, or end it and start it again, as it is configured now."""
        with self.lock:
            worker, plan = self.worker(name), self._plans[name]
            absent = self._absent(plan.worker)
            if absent:
                worker.stop()
                worker.fail(absent)
                log.error("worker %s: failed: %s", name, absent)
            elif again:
                worker.restart()
            else:
                worker.start()

    def arguments(self, name: str) -> tuple[str, ...]:
        """Those of ComfyUI with which a worker runs, or would be started; see `Launcher.arguments`."""
        plan = self._running_as.get(name) or self._plans.get(name)
        return self._launcher.arguments(plan.worker) if plan else ()

    def _supervise(self, name: str) -> SupervisedWorker:
        return SupervisedWorker(
            name,
            lambda: self._launch(name),
            lambda: last_words(self._launcher.folder(name), self._said_before.get(name, 0)),
            self.settings.drain_timeout_s,
        )

    def _launch(self, name: str) -> Any:
        plan = self._plans[name]
        self._said_before[name] = log_size(self._launcher.folder(name))
        process = self._launcher.launch(name, plan)
        self._running_as[name] = plan
        where = f"cores {format_cpus(plan.placement.cores)}" if plan.placement.cores else "no cores of its own"
        threads = plan.placement.threads or self.settings.threads or "torch's choice of"
        log.info(
            "worker %s: starting on %s, %s, %s threads, pid %d; its logs are in %s",
            name, self._shown_device(plan), where, threads, process.pid, self._launcher.folder(name),
        )  # fmt: skip
        return process

    def _adopt(self, found: SurvivingProcess) -> None:
        """Take a worker back; one that the configuration has no more, or has disabled, finishes its item and ends."""
        known, plan = found.survivor, self._plans.get(found.survivor.name)
        name = known.name
        worker = self._workers.setdefault(name, self._supervise(name))
        worker.adopt(found)
        log.info("worker %s: taken back, pid %d; its logs are in %s", name, found.pid, self._launcher.folder(name))
        if plan is not None:
            self._running_as[name] = replace(plan, placement=Placement(known.cores, known.threads), outlives=True)
        else:
            self._leaving.add(name)
        if plan is None or not plan.worker.enabled:
            worker.stop()

    def _shown_device(self, plan: Plan) -> str:
        """As the worker tells it: a running ComfyUI has chosen its device itself."""
        return "attach" if self._engine_of(plan.worker) == "attach" else plan.worker.device

    def _absent(self, worker: WorkerConfiguration) -> str:
        """Why a worker's device cannot be used; empty where it can, or where nobody knows."""
        kind, _, numbers = worker.device.partition(":")
        if kind not in ("cuda", "xpu") or self._engine_of(worker) in ("builtin", "attach"):
            return ""
        known = [device.name for device in self.facts.devices]
        absent = [f"{kind}:{number}" for number in numbers.split(",") if f"{kind}:{number}" not in known]
        remedy = f"see that the driver lists it (nvidia-smi), then start {self.facts.started_as} again"
        return f"{', '.join(absent)} is not on this host, which has {', '.join(known)}; {remedy}" if absent else ""

    # -- the record ------------------------------------------------------------------------------------------------------
    def record(self) -> HostRecord:
        """What the table is told about this host."""
        with self.lock:
            return HostRecord(
                host=self.host,
                user=self.settings.submitter,
                pid=os.getpid(),
                incarnation=self.incarnation,
                package_version=__version__,
                system=f"{platform.system()} {platform.release()} {platform.machine()}",
                cpus=sum(map(len, self.facts.topology.cores)) or os.cpu_count() or 0,
                devices=self.facts.devices,
                workers=tuple(self._told_of(worker) for worker in self._workers.values()),
                configuration=shown_configuration(self.configuration),
                remote_configuration=self.remote_configuration,
                resources=read_resources(self.settings.cache_folder),
            )

    @property
    def remote_configuration(self) -> bool:
        """Whether other hosts may change the configuration of this one."""
        said = self.configuration.remote_configuration
        return self.servers.local if said is None else said

    def _told_of(self, worker: SupervisedWorker) -> HostWorker:
        configured = self.configuration.workers.get(worker.name)
        plan = self._running_as.get(worker.name) if worker.process is not None else self._plans.get(worker.name)
        enabled = configured is not None and configured.enabled
        return HostWorker(
            name=worker.name,
            phase=worker.phase(enabled=enabled),
            device=self._shown_device(plan) if plan else "",
            enabled=enabled,
            reason=worker.reason,
            next_start_s=round(worker.next_start_s, 1),
            pid=worker.process.pid if worker.process else 0,
            cores=format_cpus(plan.placement.cores) if plan else "",
            threads=plan.placement.threads if plan else 0,
            restarts=worker.restarts,
            log_folder=str(self._launcher.folder(worker.name)),
            outdated=worker.process is not None and plan != self._plans.get(worker.name),
        )

    def tell(self) -> None:
        """Tell the table now how the host is; where that is away, the next time does."""
        with suppress(DistributedComfyError, redis.RedisError):
            self._tell_changes()

    def _tell_changes(self) -> None:
        with self._telling:  # else an older record could come after a newer one
            record = self.record()
            if not self._changed(record) and not self._is_due("renew", self.settings.renew_interval_s):
                return
            self._told = record
            self._due["renew"] = time.monotonic() + self.settings.renew_interval_s
            if other := self.cluster.hosts.renew(record, self.seal):
                log.warning("%s", self._told_apart({"host": other.host, "pid": other.pid, "user": other.user}))

    def _told_apart(self, other: Mapping[str, Any]) -> AgentRunning | InvitationInUse:
        """Another agent has this host's name; where that comes with an invitation no setting changes it."""
        url = self.servers.invited_to
        return InvitationInUse(**other, url=url) if url else AgentRunning(**other)

    # -- the thread ------------------------------------------------------------------------------------------------------
    def _keep(self) -> None:
        while not self._ending.wait(_TICK_S):
            self._tend()
            if self._is_due("logs", _LOGS_S):
                self._cut_logs()

    def _tend(self) -> None:
        with self.lock:
            for worker in list(self._workers.values()):
                worker.tick()
                if worker.name in self._leaving and worker.process is None:
                    self._leaving.discard(worker.name)
                    del self._workers[worker.name]

    def _talk(self) -> None:
        """In a thread of its own: whoever looks after processes must not wait for a server that does not answer."""
        while not self._ending.wait(_TICK_S):
            self._talk_once()

    def _talk_once(self) -> None:
        """Ask the table how the workers are and tell it how the host is; servers may be away, then the next time does."""
        try:
            if self._is_due("look", _LOOK_S):
                self._look()
                self._admission.accepted()
            self._tell_changes()
        except (DistributedComfyError, redis.RedisError) as error:
            told = self._admission.failed(error) or self._ailing
            log.log(logging.DEBUG if told else logging.WARNING, "the agent cannot reach the table: %s; it tries again", error)
            self._ailing = True
        else:
            self._ailing = False

    def _changed(self, record: HostRecord) -> bool:
        """Apart from waits that pass, and memory and disk that fill and empty, by themselves."""
        return self._told is None or _without_waits(record) != _without_waits(self._told)

    def _look(self) -> None:
        found: Mapping[str, Any] = {state.facts.name: state for state in self.cluster.workers.workers(list(self._workers))}
        with self.lock:
            for worker in self._workers.values():
                worker.see(found.get(worker.name))

    def _cut_logs(self) -> None:
        """What workers' engines print, and workers that outlive their agent, goes to files without a pipe."""
        for name, worker in list(self._workers.items()):
            outlives = worker.process is not None and worker.process.outlives
            for file in (ENGINE_LOG, WORKER_LOG) if outlives else (ENGINE_LOG,):
                with suppress(OSError):
                    cut_if_long(self._launcher.folder(name) / file)

    def _is_due(self, what: str, interval_s: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + interval_s
        return True


def _wish(name: str, worker: WorkerConfiguration, threads: int) -> Wish:
    kind, _, numbers = worker.device.partition(":")
    devices = tuple(f"{kind}:{number}" for number in numbers.split(",")) if numbers else (kind,)
    return Wish(name, devices, () if worker.cores == "auto" else worker.cores, worker.threads or threads)


def _without_waits(record: HostRecord) -> HostRecord:
    """Without what changes all the time."""
    return replace(record, resources=None, workers=tuple(replace(worker, next_start_s=0.0) for worker in record.workers))
