"""The workers of this host as the pack has them: its own agent looks after them, or that of an `up` which was there first."""
from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Literal

import redis

from distributed_comfy.agent.agent import Agent
from distributed_comfy.agent.configuration import HostConfiguration
from distributed_comfy.agent.facts import HostFacts
from distributed_comfy.agent.orders import HostOrders
from distributed_comfy.agent.topology import read_topology
from distributed_comfy.agent.up import (
    AGENT_CHECK_S,
    LocalAgent,
    alone_on_host,
    find_local_agent,
    populate,
    running_agent,
    survivors_folder,
    workers_file,
)
from distributed_comfy.comfyui.devices import by_ids, host_devices
from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.options import OptionsFile
from distributed_comfy.comfyui.surroundings import read_surroundings
from distributed_comfy.engine.devices import CPU
from distributed_comfy.errors import AgentRunning, ClusterNotReady, DistributedComfyError
from distributed_comfy.host_messages import HostAnswer, HostVerb, sign_order
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.settings import Settings, changed
from distributed_comfy.state.records import HostDevice, HostRecord, HostWorker
from tasks.cluster import Cluster
from tasks.host_orders import order_for, send_order

log = logging.getLogger(__name__)

AgentPlace = Literal["none", "here", "elsewhere", "failed"]

_TRY_AGAIN_S = 10.0
_ORDER_S = 15.0


class ServersGone(Exception):
    """The embedded Redis ended; another one has another address."""


class HostWorkers:
    """`run` is the life of the agent; all else may be called from any thread, at any time.

    Args:
        host: the ComfyUI of this process.
        options: of the user.
    """

    def __init__(self, host: ComfyHost, options: OptionsFile) -> None:
        self.place: AgentPlace = "none"
        """Where the agent is: in this process, or in that of an `up`."""
        self.reason = ""
        """Which other one it is, or why there is none."""
        self.devices: tuple[HostDevice, ...] = ()
        self.agent: Agent | None = None
        """Where it is in this process."""
        self.own: frozenset[str] = frozenset()
        """Names of the devices that this ComfyUI computes on."""
        self._host = host
        self._options = options
        self._surroundings = read_surroundings(host.args, sys.argv[1:])
        self._cluster: Cluster | None = None
        self._secret = ""
        self._ran: frozenset[str] = frozenset()
        """Workers that were to run when the agent ended before this ComfyUI did, as with its servers."""
        self._begins = True
        """The agent is yet to come to its cluster, and what it starts by itself with it."""

    # -- life ------------------------------------------------------------------------------------------------------------
    def run(self, cluster: Cluster, servers: Servers, wait: Callable[[float], bool]) -> None:
        """Be the agent of this host until ``wait`` is true; while another process is, wait for its place.

        Args:
            cluster: open; stays so.
            servers: where workers connect.
            wait: waits for that long, and tells whether it is over.
        Raises:
            Exception: what ``wait`` raises.
        """
        self._cluster = cluster
        try:
            environment = by_ids(self._host, self._surroundings.environment or {})
            self._surroundings = replace(self._surroundings, environment=environment)
            self.devices, self.own = host_devices(self._host, cluster.settings, environment)
            while not wait(0.0):
                try:
                    with alone_on_host(cluster.settings) as local:
                        self._be_agent(cluster, servers, local, wait)
                    if not wait(0.0):
                        self._tell("failed", "the agent of this host ended unexpectedly; it is started again")
                except AgentRunning as error:
                    self._ran, self._begins = frozenset(), False
                    self._tell("elsewhere", f"host {error.host} has an agent in another process (pid {error.pid}, user {error.user})")
                except (DistributedComfyError, redis.RedisError) as error:
                    self._begins = False
                    self._tell("failed", str(error))
                if wait(_TRY_AGAIN_S):
                    return
        finally:
            self._cluster, self._begins = None, True
            self._tell("none", "")

    def _be_agent(self, cluster: Cluster, servers: Servers, local: LocalAgent, wait: Callable[[float], bool]) -> None:
        settings, file = cluster.settings, workers_file(cluster.settings)
        free = tuple(device for device in self.devices if device.name not in self.own and device.name != "cpu")
        if free and not file.exists():
            file.write(populate(settings.host_name, free))
            names = ", ".join(device.name for device in free)
            log.info("wrote %s with a worker for each GPU that this ComfyUI does not use: %s", file.path, names)
        topology, survivors = read_topology(self.devices), survivors_folder(settings)
        facts = HostFacts(self.devices, topology, survivors, self._surroundings, "this ComfyUI", self._adjusted)
        agent = Agent(cluster, servers, file, facts)
        servers_gone = False
        with running_agent(agent, local) as check:
            self.agent, self._secret = agent, local.secret
            self._tell("here", "")
            try:
                self._launch(agent)
                self._begins = False
                self._tell_how_to_start(agent)
                while check() and not wait(AGENT_CHECK_S):
                    pass
            except ServersGone:
                servers_gone = True
                raise
            finally:
                self.agent, self._ran = None, agent.wanted
                (agent.lose_servers if servers_gone else agent.stop_all)()

    def _adjusted(self, configuration: HostConfiguration) -> HostConfiguration:
        """The options decide what begins and ends with this ComfyUI, whatever `up` would do."""
        return configuration.model_copy(update={"auto_launch": False, "stop_with_owner": self._options.current.stop_workers})

    def _launch(self, agent: Agent) -> None:
        """Start the workers if that is wanted, but for those that would share a GPU with this ComfyUI, and those that ran before."""
        for name in sorted(self._ran & agent.configuration.workers.keys()):
            log.info("worker %s ran before, and is started again", name)
            agent.begin(name)
        if not self._options.current.auto_launch:
            return
        for name, worker in agent.configuration.workers.items():
            if name in self._ran:
                continue
            if worker.enabled and self._shares(worker.device):
                log.warning("worker %s is not started by itself: this ComfyUI computes on %s", name, worker.device)
            elif worker.enabled:
                agent.begin(name)

    def _tell_how_to_start(self, agent: Agent) -> None:
        """Which command gives this host a worker, or starts one that waits: nobody who only looks at ComfyUI would know."""
        workers = agent.record().workers
        offers = [offer["command"] for offer in self._offers(workers) if not offer["shares"]]
        waiting = [worker.name for worker in workers if worker.phase == "stopped" and not self._shares(worker.device)]
        if waiting:
            log.info(
                "workers of this host that wait: %s; `distributed-comfy workers start %s` starts one, the option auto_launch all of them",
                ", ".join(waiting), waiting[0],
            )  # fmt: skip
        elif not workers and offers:
            log.info("this host has no worker yet; `%s` gives it one", "`, or `".join(offers))

    def _shares(self, device: str) -> bool:
        """Whether a worker there would share a GPU with this ComfyUI."""
        return device != "cpu" and not self.own.isdisjoint(_parts(device))

    def _tell(self, place: AgentPlace, reason: str) -> None:
        if place in ("elsewhere", "failed") and (place, reason) != (self.place, self.reason):
            used = "this ComfyUI uses that one" if place == "elsewhere" else "no worker of this host can be started from here"
            log.warning("%s; %s", reason, used)
        self.place, self.reason = place, reason

    # -- orders ----------------------------------------------------------------------------------------------------------
    def order(self, verb: HostVerb, worker: str = "", **arguments: Any) -> HostAnswer:
        """Let the agent of this host do something with its workers.

        Args:
            verb: see `distributed_comfy.agent.orders`.
            worker: name of it; empty for a new one that gets a name.
            arguments: ``fields`` of a worker's configuration, for `add` and `edit`.
        Raises:
            ClusterUnavailable: this ComfyUI has no cluster, or its host no agent.
            DistributedComfyError: what keeps the agent from obeying.
        """
        order, agent, cluster = order_for(verb, worker, **arguments), self.agent, self._cluster
        if agent is not None:
            return HostOrders(agent, self._secret).obey(sign_order(order, self._secret))
        if cluster is None:
            raise ClusterNotReady(state="off")
        other = find_local_agent(cluster.settings)
        return send_order(cluster, cluster.settings.host_name, order, timeout_s=_ORDER_S, secret=other.secret if other else "")

    def options_changed(self) -> None:
        """Use the options as they are now; a file of workers that is wrong meanwhile is told, and what it said before stays."""
        if (agent := self.agent) is not None:
            try:
                agent.use(agent.file.read_or_empty())
            except DistributedComfyError as error:
                log.warning("%s", error)

    # -- state -----------------------------------------------------------------------------------------------------------
    def record(self) -> HostRecord | None:
        """What the agent of this host tells; None where there is none, or where nobody can be asked."""
        if (agent := self.agent) is not None:
            return agent.record()
        if (cluster := self._cluster) is None or self.place != "elsewhere":
            return None
        try:
            return cluster.hosts.host(cluster.settings.host_name)
        except (DistributedComfyError, redis.RedisError) as error:
            log.debug("the agent of this host cannot be asked for: %s", error)
            return None

    def starting(self, cluster: Cluster) -> frozenset[str]:
        """Workers that have been started and have not joined yet: those of this host, and those of other hosts with an agent.

        Args:
            cluster: the open one, where other hosts tell of theirs.
        Raises:
            ClusterUnavailable, redis.RedisError: the table does not answer.
        """
        agent, own = self.agent, cluster.settings.host_name
        records = [record for record in cluster.hosts.living() if agent is None or record.host != own]
        records += [agent.record()] if agent is not None else []
        found = {worker.name for record in records for worker in record.workers if worker.phase == "starting"}
        if not self._begins:
            return frozenset(found)
        begun = self._options.current.auto_launch and not self._ran
        return frozenset(found | self._ran | ({f"the workers of {own}"} if begun else set()))

    def shown(self) -> dict[str, Any]:
        """All of it as JSON values, for people; asks the table where the agent is elsewhere."""
        record = self.record()
        workers = record.workers if record else ()
        return {
            "agent": self.place,
            "reason": self.reason,
            "devices": [{**asdict(device), "own": device.name in self.own} for device in self.devices],
            "workers": [self._worker(worker) for worker in workers],
            "offers": self._offers(workers) if record else [],
        }

    def _worker(self, worker: HostWorker) -> dict[str, Any]:
        agent, facts = self.agent, {**asdict(worker), "shares": self._shares(worker.device)}
        return facts if agent is None else {**facts, "arguments": list(agent.arguments(worker.name))}

    def _offers(self, workers: tuple[HostWorker, ...]) -> list[dict[str, Any]]:
        """Devices that have no worker yet, and what gives them one."""
        used = {part for worker in workers for part in _parts(worker.device)}
        devices = [*self.devices, *(() if CPU in self.devices else (CPU,))]
        return [
            {
                "device": device.name,
                "model": device.model,
                "shares": self._shares(device.name),
                "command": f"distributed-comfy workers add --device {device.name}",
            }
            for device in devices
            if device.name not in used
        ]


def like_this(settings: Settings, host: ComfyHost) -> Settings:
    """The settings with which workers, also those that are added by commands, run the tree and the interpreter of this ComfyUI."""
    return changed(settings, comfyui_path=host.root, comfyui_python=sys.executable)


def _parts(device: str) -> list[str]:
    """``cuda:0,1`` are two devices."""
    kind, _, numbers = device.partition(":")
    return [f"{kind}:{number}" for number in numbers.split(",")] if numbers else [kind]
