"""One worker: its identity in the table, its engine, the claims it holds, and the threads that keep it alive."""
from __future__ import annotations

import base64
import json
import logging
import os
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import redis

from distributed_comfy import __version__
from distributed_comfy.cpu_list import format_cpus
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.protocol import Preview, Progress, Said, Waits
from distributed_comfy.errors import ComfyUIUnreachable, ConnectionLost, DistributedComfyError, EngineDied, WorkerHung, WorkerNameTaken
from distributed_comfy.messages import Capability, JobRecord, Prompt, RunRequest
from distributed_comfy.planning.requirements import capability_hash
from distributed_comfy.state.keys import Keys
from distributed_comfy.state.records import WorkerFacts
from distributed_comfy.state.status import STARTING
from tasks.activity import WorkerActivity
from tasks.admission import Admission
from tasks.cluster import Cluster
from tasks.engine_link import EngineLink
from tasks.held import HeldClaims, Phase
from tasks.reaper import queue_key, reap_once
from tasks.status import StatusTeller

log = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 0.1
_PREVIEW_INTERVAL_S = 0.5
_UNREAD_TICKS = 3
_ROUNDS_MISSED = 3
"""Signs of life; fewer are no hanging, however long their interval is."""
_LONGEST_PATIENCE_TICKS = 24
_JOBS_REMEMBERED = 16
_ITEMS_REMEMBERED = 64
_JOIN_S = 2.0
_ON_THE_WAY = "whose files are on their way"
"""Of items that the engine does not know yet."""


class WorkerRuntime:
    """Created once per worker process; `start` after the Celery consumer is set up, `stop` when it ends."""

    def __init__(self, cluster: Cluster, name: str, options: EngineOptions, restart_consumer: Callable[[], None]) -> None:
        """
        Args:
            cluster: open connections.
            name: of the worker; a valid queue name.
            options: for the engine process.
            restart_consumer: called when tickets lie in the queue and nobody reads them.
        """
        self.cluster = cluster
        self.settings = cluster.settings
        self.name = name
        self.held = HeldClaims()
        self.draining = threading.Event()
        self.incarnation = uuid.uuid4().hex
        self.failed: DistributedComfyError | None = None
        self.engine = EngineLink(options, cluster.settings.stall_timeout_s, self)
        self.job_texts = lru_cache(maxsize=_JOBS_REMEMBERED)(self._read_job)
        self.pid = os.getpid()
        self.down_reason = STARTING
        self.status = StatusTeller(self)
        self.activity = WorkerActivity(self.status.changed)
        self._options = options
        self._keys = Keys(cluster.settings.key_prefix)
        self._capability: Capability | None = None
        self._able = threading.Event()
        self._ever_able = False
        self._registering = threading.Lock()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._restart_consumer = restart_consumer
        self._unread, self._patience = 0, _UNREAD_TICKS
        self._unread_in_all = self._lease_rounds = 0
        self._ailing: set[str] = set()
        self._admission = Admission(cluster.redis_url, cluster.settings.refused_ttl_s)
        self._shown_at: dict[str, float] = {}
        self._ran_out: deque[str] = deque(maxlen=_ITEMS_REMEMBERED)

    # -- life ----------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start the engine and the threads; the worker registers when its engine is ready."""
        self.engine.start()
        kept = ((self._keep_lease, "lease"), (self._keep_reaping, "reaper"), (self._hear_orders, "orders"), (self._tell_status, "status"))
        for target, name in (*kept, (lambda: self.status.watch_device(self._stopped), "device")):
            self._threads.append(threading.Thread(target=target, name=name, daemon=True))
            self._threads[-1].start()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    @property
    def capability(self) -> Capability | None:
        """What the engine can do; None while there is no engine."""
        return self._capability

    @property
    def ever_able(self) -> bool:
        """Whether the worker has been on the table."""
        return self._ever_able

    def wait_able(self, timeout_s: float) -> bool:
        """Wait until the engine is ready and the worker registered; False after ``timeout_s``."""
        return self._able.wait(timeout_s)

    def ran_out_before(self, item: str) -> bool:
        """Note that an item ran out of memory here; whether it is not the first time."""
        before = item in self._ran_out
        self._ran_out.append(item)
        return before

    def drain(self, timeout_s: float) -> None:
        """Claim nothing more; let running items finish, and after ``timeout_s`` give them back."""
        self.draining.set()
        self.status.changed()
        if self._able.is_set():
            self._quietly("drain", lambda: self.cluster.workers.suspend(self.name, self.incarnation))
        deadline = time.monotonic() + timeout_s
        while self.held.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        for claim_id in self.held.running():
            item = self.engine.item_of(claim_id) or _ON_THE_WAY
            log.info("worker %s: item %s (claim %s) is given back unfinished", self.name, item, claim_id)
            self.interrupt(claim_id)
        while self.held.running() and time.monotonic() < deadline + 5:
            time.sleep(0.05)

    def interrupt(self, claim_id: str) -> None:
        """End an item that is held, whether its files are on their way or the engine has it."""
        self.held.interrupt(claim_id)
        self.engine.interrupt(claim_id)

    def is_wanted(self, claim_id: str) -> bool:
        """False for an item that was interrupted, and once the worker ends."""
        return not self.stopped and not self.held.is_interrupted(claim_id)

    def stop(self) -> None:
        """End the engine, leave the table, end the threads."""
        self._stopped.set()
        if self.held.running():  # the engine does not heed its interrupt, loading something; the items need not wait for its end
            self._quietly("leave", lambda: self.cluster.workers.leave(self.name, self.incarnation))
        self.engine.close()
        self._quietly("leave", lambda: self.cluster.workers.leave(self.name, self.incarnation))
        never_there = not self._ever_able and not isinstance(self.failed, WorkerNameTaken)
        if never_there:
            self._quietly("name", lambda: self.cluster.workers.release_name(self.name))
        self.status.changed()
        for thread in self._threads:  # whoever called closes the connections that they use
            thread.join(timeout=_JOIN_S)
        if never_there:
            self._quietly("status", lambda: self.cluster.statuses.withdraw(self.name))

    def register(self) -> None:
        """Enter the table (again) with the engine's present capability.

        Raises:
            WorkerNameTaken: another live worker has the name.
        """
        capability = self._capability
        if capability is None or self._stopped.is_set() or self.draining.is_set():
            return
        with self._registering:
            self.cluster.workers.register(self._facts(capability), self.incarnation, capability_hash(capability), capability)
            self._able.set()
            self._ever_able = True
        self.status.changed()

    def _facts(self, capability: Capability) -> WorkerFacts:
        return WorkerFacts(
            name=self.name,
            host=self.settings.host_name,
            device=self._options.device,
            engine=capability.engine,
            engine_version=capability.engine_version,
            device_class=capability.device_class,
            pid=self.pid,
            tags=capability.tags,
            package_version=__version__,
            started_by=self.settings.starter,
            cores=format_cpus(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "",
            packs=self.engine.report.packs,
        )

    # -- events of the engine --------------------------------------------------------------------------------------------
    def on_capability(self, capability: Capability) -> None:
        """See `EngineListener`: register with what the engine can do now."""
        changed = capability != self._capability
        self._capability = capability
        if not changed and self._able.is_set():
            return
        try:
            self._register_patiently()
            log.info("worker %s is ready: %s on %s", self.name, capability.engine, capability.device_class)
        except WorkerNameTaken as error:
            self._end_with(error)
        except (DistributedComfyError, redis.RedisError) as error:
            log.warning("worker %s could not register (%s); it tries again with its next sign of life", self.name, error)

    def _register_patiently(self) -> None:
        """A worker that was killed holds its name for one lease."""
        give_up = time.monotonic() + self.settings.lease_ttl_s + 2 * self.settings.reaper_interval_s
        while True:
            try:
                return self.register()
            except WorkerNameTaken:
                if time.monotonic() >= give_up:
                    raise
                self._lease_rounds += 1  # it waits, and does not hang
                self._stopped.wait(0.25)

    def on_phase(self, claim_id: str, phase: Phase) -> None:
        """See `EngineListener`."""
        self.held.advance(claim_id, phase)
        if phase == "shipping":
            self.activity.ship(claim_id)

    def on_start_failed(self, error: DistributedComfyError) -> None:
        """See `EngineListener`: a worker whose engine has never started ends with the reason, but one waits for a ComfyUI of others."""
        self.activity.trouble(error)
        if not self._ever_able and not isinstance(error, ComfyUIUnreachable):
            self.failed = error

    def on_died(self, error: EngineDied) -> None:
        """See `EngineListener`."""
        self.activity.trouble(error)

    def on_down(self, reason: str) -> None:
        """See `EngineListener`: claim nothing until the engine is back."""
        self._able.clear()
        self._capability = None
        self.down_reason = reason
        self.status.changed()
        self._quietly("suspend", lambda: self.cluster.workers.suspend(self.name, self.incarnation))

    def on_progress(self, request: RunRequest, event: Progress | Preview | Said | Waits) -> None:
        """See `EngineListener`: tell whoever watches the job, a few times a second at most; a node's last step always."""
        if isinstance(event, Said):
            self._echo(request, event)
            return
        if isinstance(event, Waits):
            self.activity.wait(request.claim_id, event.reason)
            self._show(request, {"index": request.index, "worker": self.name, "waits": event.reason})
            return
        if isinstance(event, Progress):
            self.activity.step(event)
        message: dict[str, Any] = {"index": request.index, "worker": self.name, "node": event.node_id}
        if isinstance(event, Preview):
            interval_s, last = _PREVIEW_INTERVAL_S, False
            message["preview"] = base64.b64encode(event.image).decode()
        else:
            interval_s, last = _PROGRESS_INTERVAL_S, event.value == event.maximum
            message.update(value=event.value, maximum=event.maximum)
        now, kind = time.monotonic(), type(event).__name__
        if last or now - self._shown_at.get(kind, 0.0) >= interval_s:
            self._shown_at[kind] = now
            self._show(request, message)

    def _echo(self, request: RunRequest, said: Said) -> None:
        """Whatever of it may be left out, the engine has left out."""
        message = {"index": request.index, "worker": self.name, "claim": said.claim_id, "said": said.event, "facts": said.facts_json}
        self._show(request, message)

    def _show(self, request: RunRequest, message: dict[str, Any]) -> None:
        self._quietly("publish", lambda: self.cluster.client.publish(self._keys("progress", request.job_id), json.dumps(message)))

    def _tell_status(self) -> None:
        self.status.run(self._stopped, self._quietly)

    # -- threads ---------------------------------------------------------------------------------------------------------
    def _keep_lease(self) -> None:
        describe_at = time.monotonic() + self.settings.describe_interval_s
        while not self._stopped.wait(self.settings.renew_interval_s):
            self._lease_rounds += 1
            if self.failed:
                continue
            if self._ever_able:  # also while the engine restarts: the worker lives, and its name stays its own
                self._quietly("renew", self._renew)
            if not self._able.is_set():
                if self._capability is not None:
                    self._quietly("register", self._register_patiently)
                elif not self._ever_able:
                    self._quietly("name", lambda: self.cluster.workers.keep_name(self.name))
            elif time.monotonic() >= describe_at:
                self.engine.describe()
                describe_at = time.monotonic() + self.settings.describe_interval_s

    def _renew(self) -> None:
        asked = self.held.all()
        answer = self.cluster.workers.renew(self.name, self.incarnation, asked, self.engine.memory)
        if not answer.alive:
            log.warning("worker %s was declared dead; it drops what it has and registers anew", self.name)
            for claim_id in self.held.running():
                self.interrupt(claim_id)
            self.incarnation = uuid.uuid4().hex
            self._register_patiently()
            return
        for claim_id in answer.lost:
            if self.held.is_running(claim_id):
                log.info("worker %s: item %s (claim %s) was cancelled", self.name, self.engine.item_of(claim_id) or _ON_THE_WAY, claim_id)
                self.interrupt(claim_id)
        self._check_queue()

    def _check_queue(self) -> None:
        """Tickets that lie unread although a slot is free: the consumer's connection is stuck, or the consumer itself."""
        waiting = self.cluster.client.llen(queue_key(self.settings, f"gpu.{self.name}"))
        if not waiting or len(self.held) >= self.settings.slots:
            self._unread, self._patience, self._unread_in_all = 0, _UNREAD_TICKS, 0
            return
        self._unread, self._unread_in_all = self._unread + 1, self._unread_in_all + 1
        if self._able.is_set() and self._hangs(self._unread_in_all, self.settings.renew_interval_s):
            self._end_at_once("consumer")
        if self._unread >= self._patience:
            # Through a slow network that takes a while, and must not be begun again before it is done.
            self._unread, self._patience = 0, min(2 * self._patience, _LONGEST_PATIENCE_TICKS)
            self._restart_consumer()

    def _hangs(self, rounds: int, interval_s: float) -> bool:
        """Rounds are counted, and no time is taken, so that a process that was stopped for a while is not held to have hung."""
        return rounds * interval_s >= max(self.settings.hang_timeout_s, _ROUNDS_MISSED * self.settings.renew_interval_s)

    def _end_at_once(self, what: str) -> None:
        """Without the part that hangs there is no orderly end; the engine ends with its pipe."""
        log.critical("%s", WorkerHung(worker=self.name, what=what, seconds=round(self.settings.hang_timeout_s)))
        self._quietly("leave", lambda: self.cluster.workers.leave(self.name, self.incarnation))
        os._exit(WorkerHung.exit_code)

    def _keep_reaping(self) -> None:
        process_id, seen, quiet = uuid.uuid4().hex, 0, 0
        while not self._stopped.wait(self.settings.reaper_interval_s):
            self._quietly("reap", lambda: self._reap(process_id))
            seen, quiet = self._lease_rounds, quiet + 1 if self._lease_rounds == seen else 0
            if self._hangs(quiet, self.settings.reaper_interval_s):
                self._end_at_once("lease thread")
            verdict = self._admission.verdict
            if verdict is not None and self.failed is None:
                self._end_with(verdict)

    def _reap(self, process_id: str) -> None:
        reap_once(self.cluster, process_id)
        self._admission.accepted()

    def _hear_orders(self) -> None:
        """Orders make faster what `renew` would notice anyway."""
        while not self._stopped.is_set():
            self._quietly("listen", self._listen)
            self._stopped.wait(1.0)

    def _listen(self) -> None:
        """Until the worker ends.

        Raises:
            ConnectionLost: a question of one lease ago has no answer; who only listens would not notice a connection that died silently.
        """
        with _subscriber(self.cluster.client) as channel:
            steering = self._keys("steering", self.name)
            channel.subscribe(self._keys("orders", self.name), steering)
            asked_at = heard_at = time.monotonic()
            while not self._stopped.is_set():
                message = channel.get_message(timeout=0.2)
                now = time.monotonic()
                if message:
                    heard_at = now
                    order, _, argument = str(message["data"]).partition(" ")
                    if message["channel"] == steering:
                        self._obey(order)
                    elif order == "cancel":
                        self._cancel(argument)
                elif now - asked_at > self.settings.lease_ttl_s:
                    if heard_at < asked_at:
                        raise ConnectionLost(target="the channel for orders", reason="no answer")
                    channel.ping()
                    asked_at = now

    def _cancel(self, claim_id: str) -> None:
        """Every worker may say so, because any process may be the one that changes the table: it is believed where that is so."""
        if not self.held.is_running(claim_id) or self.cluster.workers.has_claim(self.name, claim_id):
            return
        self.interrupt(claim_id)

    def _obey(self, order: str) -> None:
        if order == "look":
            self.engine.describe()
        elif order == "free":
            self.engine.free()
        elif order == "end":
            signal.raise_signal(signal.SIGTERM)  # the consumer's handler for it runs in the main thread

    def _quietly(self, what: str, action: Callable[[], object]) -> None:
        """Servers may be away: the next tick tries again.  Said once per outage."""
        try:
            action()
        except WorkerNameTaken as error:
            self._end_with(error)
        except (DistributedComfyError, redis.RedisError) as error:
            told = self._admission.failed(error) or what in self._ailing
            log.log(logging.DEBUG if told else logging.WARNING, "worker %s: %s: %s; it tries again", self.name, what, error)
            self._ailing.add(what)
        else:
            self._ailing.discard(what)

    def _end_with(self, error: DistributedComfyError) -> None:
        """Another live worker has the name, or the cluster has shut this host out: the worker ends."""
        log.error("%s", error)
        self.failed = error
        self._able.set()

    def _read_job(self, job_id: str) -> tuple[JobRecord, dict[str, Prompt], list[str]]:
        return self.cluster.jobs.texts(job_id)


def _subscriber(client: Any) -> Any:
    """redis-py leaves this method untyped."""
    return client.pubsub(ignore_subscribe_messages=True)


def with_folder(options: EngineOptions, name: str, settings_folder: Any) -> EngineOptions:
    """Engine options for a worker of this name: its folder and log lie under ``settings_folder``."""
    folder = settings_folder / "workers" / name
    return replace(options, worker=name, folder=folder, log_file=folder / "engine.log")
