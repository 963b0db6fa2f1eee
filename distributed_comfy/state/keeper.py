"""The process that starts the two embedded Redis servers, watches them and ends them; started by `state.embedded`.

Why a process of its own: the servers must end with their owner also when that is killed, and no process can see to that for itself.  The
owner's end shows in its pipe, on every system; PDEATHSIG, which is Linux only and follows the thread that forked, guards only the
short way from here to the servers.  Standard library only, so that it starts in a moment under any interpreter.

    owner -- one JSON line: Order --> stdin      stdout -- one JSON line: Runtime or an error --> owner

In the folder::

    runtime.json    0600; while it is there the servers may be used, and removing it ends them
    keeper.lock     held by the keeper
    start.lock      held by whoever changes who owns the servers
    owners/*.lock   each held by an owner
    door.json       what the door does, if it is open (see `state.door`)
    state/, blobs/  see `state.server_process`
"""
from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distributed_comfy.errors import ServerStartFailed
from distributed_comfy.file_lock import FileLock
from distributed_comfy.relay.requests import LARGEST_ARGUMENT_BYTES
from distributed_comfy.state.door import DoorProcess
from distributed_comfy.state.server_process import ServerProcess, write_secret
from distributed_comfy.state.stuck_server import LOOK_INTERVAL_S, StuckServerWatch

log = logging.getLogger(__name__)

_POLL_INTERVAL_S = 0.1
_MOST_DEATHS, _DEATHS_S = 5, 60.0
"""Of both servers within so long: where they die as often as that, another start does not help."""
_OWNERS_INTERVAL_S = 1.0
_STDIN = 0
_SHARE_OF_CLIENTS = 4
"""The part of a server's memory that the buffers of all its connections may have; whoever has most is cut off then."""


@dataclass(frozen=True)
class Order:
    """What the owner wants."""

    folder: str
    """Absolute; the keeper makes one of private servers, so that it never stays when the owner is killed at whatever moment."""
    program: str
    provider: str
    private: bool
    """End with the owner and remove the folder; else live on until no owner was seen for ``linger_s``."""
    blob_memory_bytes: int
    """What the blob server may use."""
    state_memory_bytes: int
    """The same of the state server; it refuses new jobs then, instead of taking this system's last memory."""
    bounds_clients: bool
    """Whether the program knows ``maxmemory-clients``, which came with Redis 7."""
    linger_s: float
    libraries: str = ""
    """See `DoorProcess`."""
    state_before: str = ""
    """URL of a state server that is gone, if there was one; see `ServerProcess`."""
    blobs_before: str = ""


@dataclass(frozen=True)
class Runtime:
    """Two running servers, as other processes of the user find them."""

    state_url: str
    blob_url: str
    provider: str
    pids: tuple[int, ...]
    """Of the keeper, the state server and the blob server."""


class Keeper:
    """Both servers of one folder, from start to end.

    Args:
        order: what the owner wants.
        owner_gone: set when the owner's pipe closes.
    """

    def __init__(self, order: Order, owner_gone: threading.Event) -> None:
        self._order = order
        self._folder = Path(order.folder)
        self._owner_gone = owner_gone
        self._end_asked = threading.Event()
        self._parent_pid = os.getppid()
        self._entered: tuple[int, ...] = ()
        """The process ids in the runtime file; none before that is there."""
        self._last_owner_s = time.monotonic()
        shared = not order.private
        state = {"appendonly": "yes", "appendfsync": "everysec", **_bounds(order, order.state_memory_bytes)}
        blobs = {"appendonly": "no", **_bounds(order, order.blob_memory_bytes)}
        self._state = ServerProcess(self._folder / "state", order.program, state, data_matters=shared, before=order.state_before)
        self._blobs = ServerProcess(self._folder / "blobs", order.program, blobs, data_matters=False, before=order.blobs_before)
        self._deaths: list[float] = []
        self._door: DoorProcess | None = None
        self._watches = [
            StuckServerWatch(server, name, self._is_given_up) for server, name in ((self._state, "state"), (self._blobs, "blob"))
        ]
        self._looked_s = time.monotonic()

    def start(self) -> Runtime:
        """Start both servers and write the runtime file.

        Raises:
            ServerStartFailed: one did not start, or the owner is gone already.
        """
        for server in (self._state, self._blobs):
            server.start(self._is_given_up)
        if self._is_given_up():
            raise ServerStartFailed(program=self._order.program, reason="the process that asked for it is gone")
        runtime = self._write_runtime()
        self._last_owner_s = time.monotonic()
        urls = self._state.url, self._blobs.url
        self._door = DoorProcess(self._folder, self._state.port, self._blobs.port, urls, self._order.libraries)
        return runtime

    def _write_runtime(self) -> Runtime:
        runtime = Runtime(self._state.url, self._blobs.url, self._order.provider, self._pids())
        write_secret(runtime_file(self._folder), json.dumps(asdict(runtime)))
        self._entered = runtime.pids
        return runtime

    def _pids(self) -> tuple[int, ...]:
        return os.getpid(), self._state.pid, self._blobs.pid

    def _enter_new_pids(self) -> None:
        """Write down the processes of servers that were started again; later, where somebody is coming or going just now.

        Under the lock, under which the file is removed, so that it does not come back.
        """
        if self._pids() == self._entered:
            return
        lock = FileLock(self._folder / "start.lock")
        if lock.try_acquire():
            try:
                if runtime_file(self._folder).exists():
                    self._write_runtime()
            finally:
                lock.release()

    def _free_servers(self) -> None:
        """See `StuckServerWatch`."""
        if time.monotonic() - self._looked_s < LOOK_INTERVAL_S:
            return
        self._looked_s = time.monotonic()
        for watch in self._watches:
            watch.look()

    def _raise_dead(self) -> bool:
        """Start a server that died again, where it was; false where that is of no use: it died too often, or does not start.

        What the state server has written is there again, and clients of both reconnect.
        """
        for server, name in ((self._state, "state"), (self._blobs, "blob")):
            if server.is_running():
                continue
            now = time.monotonic()
            self._deaths = [*(at for at in self._deaths if now - at < _DEATHS_S), now]
            if len(self._deaths) > _MOST_DEATHS:
                log.error("the servers died %d times in %.0f s; they are not started again", len(self._deaths), _DEATHS_S)
                return False
            log.error("the %s server is gone; it is started again", name)
            try:
                server.restart(self._is_given_up)
            except ServerStartFailed as error:
                log.error("%s", error)
                return False
        return True

    def watch(self) -> None:
        """Return when the servers are to end: asked for, without owners, or one of the two stays gone (half a pair is of no use)."""
        while runtime_file(self._folder).exists():
            if self._end_asked.wait(_POLL_INTERVAL_S) or not self._raise_dead():
                return
            self._enter_new_pids()
            if self._door:
                self._door.tend()
            self._free_servers()
            if self._is_given_up() if self._order.private else self._nobody_came_back():
                return

    def end(self) -> None:
        """End both servers; of a private pair nothing stays."""
        runtime_file(self._folder).unlink(missing_ok=True)
        if self._door:
            self._door.shut()
        for server in (self._state, self._blobs):
            server.end()
        if self._order.private:
            shutil.rmtree(self._folder, ignore_errors=True)

    def ask_to_end(self) -> None:
        """Make `watch` return soon; from a signal handler."""
        self._end_asked.set()

    def _is_given_up(self) -> bool:
        """Whether nobody wants the servers any more."""
        if self._end_asked.is_set() or (self._entered and not runtime_file(self._folder).exists()):
            return True
        if self._entered and not self._order.private:
            return False  # whoever started them may be gone since; others own them, or nobody came back yet
        # The pipe alone is not enough: a child that the owner forked without exec holds it open.
        return self._owner_gone.is_set() or os.getppid() != self._parent_pid

    def _nobody_came_back(self) -> bool:
        """Whether no owner lived for so long that the servers end; owners that stop in good order do not leave it to this."""
        waited_s = time.monotonic() - self._last_owner_s
        if waited_s < min(_OWNERS_INTERVAL_S, self._order.linger_s):
            return False
        lock = FileLock(self._folder / "start.lock")
        if not lock.try_acquire():
            return False  # somebody is coming or going just now
        try:
            if live_owners(self._folder):
                self._last_owner_s = time.monotonic()
                return False
            if waited_s >= self._order.linger_s:
                runtime_file(self._folder).unlink(missing_ok=True)  # under the lock, so that nobody attaches any more
                return True
            return False
        finally:
            lock.release()


def _bounds(order: Order, memory_bytes: int) -> dict[str, str]:
    """Options that keep what is stored, and what clients have under way, from taking all memory."""
    bounds = {"maxmemory": str(memory_bytes), "proto-max-bulk-len": str(LARGEST_ARGUMENT_BYTES)}
    if order.bounds_clients:
        bounds["maxmemory-clients"] = str(max(memory_bytes // _SHARE_OF_CLIENTS, 4 * LARGEST_ARGUMENT_BYTES))
    return bounds


def runtime_file(folder: Path) -> Path:
    """Where the runtime is written."""
    return folder / "runtime.json"


def live_owners(folder: Path) -> int:
    """How many owners live; the files of dead ones are removed.  Only under ``start.lock``."""
    living = 0
    for path in (folder / "owners").glob("*.lock"):
        lock = FileLock(path)
        if lock.try_acquire():
            lock.release()
            path.unlink(missing_ok=True)
        else:
            living += 1
    return living


def main() -> None:
    """Do what the order on stdin says, and return when the servers have ended."""
    line = _read_line()
    if not line:
        return  # the owner was gone before it said what it wanted
    order = Order(**json.loads(line))
    _open_folder(order)
    owner_gone = threading.Event()
    threading.Thread(target=_wait_for_the_end_of_stdin, args=(owner_gone,), daemon=True).start()
    lock = FileLock(Path(order.folder) / "keeper.lock")
    if not lock.try_acquire():
        _reply(ServerStartFailed(program=order.program, reason=f"another keeper works in {order.folder}").to_wire())
        return
    keeper = Keeper(order, owner_gone)
    signal.signal(signal.SIGTERM, lambda *_: keeper.ask_to_end())
    try:
        _reply(asdict(keeper.start()))
        keeper.watch()
    except ServerStartFailed as error:
        keeper.end()
        _reply(error.to_wire())
    finally:
        keeper.end()
        lock.release()


def _open_folder(order: Order) -> None:
    """Make the folder, and write what goes wrong from here on to its log."""
    folder = Path(order.folder)
    folder.mkdir(mode=0o700, exist_ok=not order.private)
    log = os.open(folder / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    os.close(log)


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n") and (part := os.read(_STDIN, 65_536)):
        line += part
    return line


def _wait_for_the_end_of_stdin(reached: threading.Event) -> None:
    # Not through sys.stdin: its lock would be held by this thread when the interpreter shuts down.
    while os.read(_STDIN, 65_536):
        pass
    reached.set()


def _reply(answer: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the owner is gone, which `Keeper` sees by itself
        pass
