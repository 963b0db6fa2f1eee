"""``distributed-comfy up``: the agent of this host and user as a process: one at a time, its servers, its devices, its orders."""
from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from distributed_comfy.agent.agent import Agent
from distributed_comfy.agent.configuration import HostConfiguration, WorkerConfiguration
from distributed_comfy.agent.facts import HostFacts
from distributed_comfy.agent.orders import HostOrders
from distributed_comfy.agent.topology import read_topology
from distributed_comfy.agent.workers_file import WorkersFile
from distributed_comfy.engine.devices import find_devices
from distributed_comfy.engine.locate import ATTACHED, choose_engine
from distributed_comfy.errors import AgentRunning, SettingInvalid
from distributed_comfy.file_lock import FileLock
from distributed_comfy.orchestrator.servers import Servers, redis_servers
from distributed_comfy.orchestrator.sweeping import sweeping
from distributed_comfy.settings import EngineName, Settings, child_environment
from distributed_comfy.state.records import HostDevice
from distributed_comfy.state.server_process import write_secret
from tasks.cluster import open_cluster
from tasks.host_consumer import HostConsumer
from tasks.names import default_worker_name

log = logging.getLogger(__name__)

AGENT_CHECK_S = 2.0
"""See `AgentCheck`."""
_WRITING_S = 2.0


@dataclass(frozen=True)
class LocalAgent:
    """What an agent's own user can read about it on its host."""

    pid: int
    user: str
    secret: str
    """Signs orders of this user, see `distributed_comfy.host_messages.sign_order`."""


@dataclass(frozen=True)
class UpOptions:
    """What `up` is told besides its settings."""

    remote_configuration: bool | None = None
    """Written to the file, where it is given."""
    joined: str = ""
    """URL of the cluster that invited this host, where the settings lead there."""
    on_place: Callable[[], None] = lambda: None
    """Called when this host's place in the table is held, before anything is written for it."""
    on_written: Callable[[Path, bool | None], None] = lambda path, before: None
    """Told the file that `remote_configuration` was written to, and what it said before."""


def run_agent(settings: Settings, options: UpOptions, stop: threading.Event, on_start: Callable[[Agent], None]) -> int:
    """Be the agent of this host until ``stop`` is set.

    Args:
        settings: of this process.
        options: see `UpOptions`.
        stop: ends it in good order.
        on_start: is given the agent once it runs.
    Returns:
        Exit status.
    Raises:
        AgentRunning: this host has one already.
        InviteRefused: the cluster has shut this host out; the workers have ended.
        SettingInvalid, WorkersFileWrong: something is configured in a way that cannot be used.
        ClusterUnavailable: no Redis.
    """
    with alone_on_host(settings) as local, agent_servers(settings, joined=options.joined) as servers:
        file = workers_file(settings)
        known = file.read() if file.exists() else None
        devices = find_devices(settings, _engine(settings, known), child_environment(settings))

        def prepare() -> None:
            options.on_place()
            _prepare(settings, file, known, devices, options)

        cluster = open_cluster(settings, servers.redis_url, servers.blob_url)
        try:
            facts = HostFacts(devices, read_topology(devices), survivors_folder(settings))
            with running_agent(Agent(cluster, servers, file, facts), local, prepare) as check:
                on_start(check.agent)
                while not stop.is_set() and check():
                    stop.wait(AGENT_CHECK_S)
        finally:
            cluster.close()
    return 0 if stop.is_set() else 1


class AgentCheck:
    """Keeps a running agent listening to orders.

    Args:
        agent: started.
        consumer: of its orders.
    """

    def __init__(self, agent: Agent, consumer: HostConsumer) -> None:
        self.agent = agent
        self._consumer = consumer

    def __call__(self) -> bool:
        """To be called every `AGENT_CHECK_S`; False once the agent cannot go on."""
        goes_on = self.agent.alive and self.agent.shut_out is None
        if goes_on:
            self._consumer.check()
        return goes_on


@contextmanager
def running_agent(agent: Agent, local: LocalAgent, prepare: Callable[[], None] = lambda: None) -> Iterator[AgentCheck]:
    """An agent that looks after its workers and obeys orders, for as long as the context lasts; errors as of `Agent.start`.

    Args:
        agent: not started yet.
        local: who it is, from `alone_on_host`.
        prepare: called when the host's place in the table is held, before the workers' file is read.
    Raises:
        InviteRefused: the cluster has shut this host out; the workers have ended.
    """
    names = ", ".join(f"{device.name} ({device.model or 'unnamed'})" for device in agent.facts.devices)
    log.info("devices of this host: %s", names)
    log.info("agent of host %s: Redis at %s, workers as in %s", agent.host, agent.servers.shown, agent.file.path)
    with _place_of(agent):
        prepare()
        consumer = HostConsumer(agent.cluster, agent.host, HostOrders(agent, local.secret).obey)
        agent.start()
    with sweeping(agent.servers, agent.settings.key_prefix):
        try:
            yield AgentCheck(agent, consumer)
        finally:
            consumer.stop()
            agent.end()
    if agent.shut_out is not None:
        raise agent.shut_out


@contextmanager
def agent_servers(settings: Settings, *, joined: str) -> Iterator[Servers]:
    """Where the agent and its workers connect, for as long as the context lasts: the only place that decides it.

    Args:
        settings: with the URLs; without them the embedded servers are used.
        joined: URL of an invitation, whose these are.  Through a relay they lead to a socket of this host, and yet to another's servers.
    """
    with redis_servers(settings) as servers:
        yield replace(servers, invited_to=joined)


def find_local_agent(settings: Settings) -> LocalAgent | None:
    """This user's agent on this host, where its file can be read; it may have ended without tidying up."""
    try:
        plain = json.loads(_own_file(settings).read_text(encoding="utf-8"))
        return LocalAgent(int(plain["pid"]), str(plain["user"]), str(plain["secret"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def populate(host: str, devices: tuple[HostDevice, ...], engine: EngineName = "comfyui") -> HostConfiguration:
    """The configuration of a host that has none: one worker for each device; one in all for a ComfyUI that runs already, with its own."""
    if engine == ATTACHED:
        return HostConfiguration(workers={default_worker_name(host, ATTACHED): WorkerConfiguration()})
    workers = {default_worker_name(host, device.name): WorkerConfiguration(device=device.name) for device in devices}
    return HostConfiguration(workers=workers)


@contextmanager
def _place_of(agent: Agent) -> Iterator[None]:
    """The host's place in the table, given back where its agent does not start.

    Raises:
        AgentRunning: another one has it.
    """
    with ExitStack() as undoing:
        agent.take_place()
        undoing.callback(agent.leave_place)
        yield
        undoing.pop_all()


def _prepare(
    settings: Settings, file: WorkersFile, known: HostConfiguration | None, devices: tuple[HostDevice, ...], options: UpOptions
) -> None:
    """Let the file say what runs here.

    Args:
        settings: of this process.
        file: of the configuration.
        known: what it says already.
        devices: of this host.
        options: see `UpOptions`.
    """
    if known is None:
        chosen = (HostDevice(settings.device),) if settings.device else devices
        known = populate(settings.host_name, chosen, choose_engine(settings))
        file.write(known)
        log.info("wrote %s with %s", file.path, ", ".join(known.workers))
    if options.remote_configuration is not None:
        file.write(known.model_copy(update={"remote_configuration": options.remote_configuration}))
        options.on_written(file.path, known.remote_configuration)
    usual = choose_engine(settings)
    if known.workers and all((worker.engine or usual) == ATTACHED for worker in known.workers.values()):
        return  # the GPUs are those of the ComfyUI that runs
    used = {part for worker in known.workers.values() for part in _devices_of(worker)}
    for device in devices:
        if device.name not in used and not settings.device and device.name != "cpu":
            log.warning("%s has no worker; `distributed-comfy workers add --device %s` gives it one", device.name, device.name)


def take_back(path: Path, written: bool, before: bool | None) -> bool:
    """Let the file say of ``remote_configuration`` what it said before, unless somebody has changed it since; whether that was done.

    Raises:
        SettingInvalid, WorkersFileWrong: the file cannot be used.
    """
    file = WorkersFile(path)
    if not file.exists() or (known := file.read()).remote_configuration != written:
        return False
    file.write(known.model_copy(update={"remote_configuration": before}))
    return True


def agent_runs(settings: Settings) -> bool:
    """Whether an agent of this user and host runs."""
    lock = FileLock(_own_file(settings).with_suffix(".lock"))
    if not lock.path.exists():
        return False
    try:
        free = lock.try_acquire()
    except OSError:
        return False
    lock.release()
    return not free


def _engine(settings: Settings, known: HostConfiguration | None) -> EngineName:
    """The engine whose devices are looked for: ComfyUI's as soon as one worker has it."""
    usual = choose_engine(settings)
    engines = {worker.engine or usual for worker in known.workers.values()} if known and known.workers else {usual}
    return "comfyui" if "comfyui" in engines else "builtin"


def _devices_of(worker: WorkerConfiguration) -> list[str]:
    kind, _, numbers = worker.device.partition(":")
    return [f"{kind}:{number}" for number in numbers.split(",")] if numbers else [kind]


@contextmanager
def alone_on_host(settings: Settings) -> Iterator[LocalAgent]:
    """Be this user's only agent on this host, for as long as the context lasts.

    Raises:
        AgentRunning: another process has it.
        SettingInvalid: the folder cannot be used.
    """
    own = _own_file(settings)
    try:
        own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(own.with_suffix(".lock"))
        if not lock.acquire(_WRITING_S):  # who has just taken it may not have written who it is
            other = find_local_agent(settings)
            raise AgentRunning(host=settings.host_name, pid=other.pid if other else "?", user=other.user if other else settings.submitter)
        local = LocalAgent(os.getpid(), settings.submitter, secrets.token_hex(32))
        write_secret(own, json.dumps(asdict(local)))
    except OSError as error:
        raise SettingInvalid(name="DC_RUNTIME_DIR", reason=f"the agent cannot use {own.parent}: {error}") from error
    try:
        yield local
    finally:
        own.unlink(missing_ok=True)
        lock.release()


def workers_file(settings: Settings) -> WorkersFile:
    """The file of this host's workers."""
    return WorkersFile(settings.workers_path.expanduser().absolute())


def survivors_folder(settings: Settings) -> Path:
    """Where it is written down which workers outlive their agent."""
    return _folder(settings) / settings.host_name


def _folder(settings: Settings) -> Path:
    return settings.runtime_folder.absolute() / "agent"


def _own_file(settings: Settings) -> Path:
    """A home folder may be shared between hosts, so the name has the host."""
    return _folder(settings) / f"{settings.host_name}.json"
