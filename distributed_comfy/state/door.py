"""The door of the embedded servers: TLS on an address of this host, passed on to their loopback ports.  Standard library only.

Redis has one list of addresses for its plain port and its TLS port, so it cannot speak TLS to the network and stay plain inside the host;
and not every program that can be embedded has TLS at all.  The door is a process of its own, started by the keeper while ``door.json`` is
there, and ends with it.  It knows no password: who comes in is the server's decision, by its users.

    keeper -- one JSON line: DoorOrder --> stdin, which stays open for as long as the door shall
"""
from __future__ import annotations

import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distributed_comfy.state.door_visit import visit

log = logging.getLogger(__name__)

_RESTART_INTERVAL_S = 2.0
"""The address may come later than the keeper, as that of a notebook does."""
_END_TIMEOUT_S = 2.0
_LOOK_INTERVAL_S = 5.0
"""How often the door looks whether its certificate was renewed."""
_CONNECTIONS = 1000
_OTHER_FILES = 64
_ACCEPT_PAUSE_S = 0.5
_RUN = "import sys; sys.path.insert(0, sys.argv[1]); from distributed_comfy.state.door import main; main()"
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class DoorPlan:
    """What ``door.json`` says; written by whoever invites (`access.doors`)."""

    address: str
    """Of this host, that others reach."""
    state_port: int
    blob_port: int
    certificate: str
    """File with the server's certificate and what signed it."""
    key: str


@dataclass(frozen=True)
class DoorOrder:
    """A plan and where its two ports lead."""

    plan: DoorPlan
    state_target: int
    """Loopback port of the state server."""
    blob_target: int


def door_file(folder: Path) -> Path:
    """Where the plan lies; without it the door is shut."""
    return folder / "door.json"


def read_plan(folder: Path) -> DoorPlan | None:
    """The plan of these embedded servers; None where the door is shut (or the file is of another version)."""
    try:
        return DoorPlan(**json.loads(door_file(folder).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def shut_door(folder: Path) -> None:
    """Nobody comes in any more, and connections through the door end; without effect where it is shut."""
    door_file(folder).unlink(missing_ok=True)


class DoorProcess:
    """The keeper's side: a door where there is a plan, none where there is not.

    Args:
        folder: of the embedded servers.
        state_target: loopback port of the state server.
        blob_target: of the blob server.
    """

    def __init__(self, folder: Path, state_target: int, blob_target: int) -> None:
        self._folder = folder
        self._targets = (state_target, blob_target)
        self._process: subprocess.Popen[bytes] | None = None
        self._plan: DoorPlan | None = None
        self._started_s = -_RESTART_INTERVAL_S

    def tend(self) -> None:
        """Start, end or restart the process, as the plan of the moment wants it."""
        plan = read_plan(self._folder)
        if plan != self._plan:
            self.shut()
            self._plan, self._started_s = plan, -_RESTART_INTERVAL_S
        running = self._process is not None and self._process.poll() is None
        if plan and not running and time.monotonic() - self._started_s >= _RESTART_INTERVAL_S:
            self.shut()
            self._started_s = time.monotonic()
            self._process = _launch(DoorOrder(plan, *self._targets))

    def shut(self) -> None:
        """End the process; without effect where there is none."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _launch(order: DoorOrder) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", _RUN, _PACKAGE_ROOT], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:  # it has just ended, which the next look sees
        pass
    return process


# -- the process itself --------------------------------------------------------------------------------------------------
def main() -> None:
    """Do what the order on stdin says until stdin closes."""
    logging.basicConfig(format="%(asctime)s %(levelname)-7s door: %(message)s", level="INFO")
    line = _read_line()
    if not line:
        return
    order = json.loads(line)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        _allow_open_files()
        door = _Door(DoorOrder(DoorPlan(**order.pop("plan")), **order))
        door.open()
        door.keep_certificate()
    except (OSError, ssl.SSLError) as error:
        log.error("cannot open: %s", error)
        sys.exit(1)


class _Door:
    """Listens at both ports, and lets in whoever comes, each with threads of its own."""

    def __init__(self, order: DoorOrder) -> None:
        self._plan = order.plan
        self._targets = {order.plan.state_port: order.state_target, order.plan.blob_port: order.blob_target}
        self._room = threading.BoundedSemaphore(_CONNECTIONS)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.num_tickets = 0  # no client of ours takes a session up again

    def open(self) -> None:
        """Listen from now on.

        Raises:
            OSError, ssl.SSLError: the address cannot be listened at, or the certificate not be read.
        """
        plan = self._plan
        self._context.load_cert_chain(plan.certificate, plan.key)
        family = socket.AF_INET6 if ":" in plan.address else socket.AF_INET
        doors = {port: socket.create_server((plan.address, port), family=family) for port in self._targets}
        for port, door in doors.items():
            threading.Thread(target=self._accept, args=(door, self._targets[port]), daemon=True).start()
            log.info("open at %s port %d", plan.address, port)

    def keep_certificate(self) -> None:
        """Use each new certificate from when it is there on; does not return."""
        plan, seen = self._plan, _stamp(self._plan)
        while True:
            time.sleep(_LOOK_INTERVAL_S)
            if _stamp(plan) != seen:
                try:
                    self._context.load_cert_chain(plan.certificate, plan.key)
                    seen = _stamp(plan)
                    log.info("uses its new certificate")
                except (OSError, ssl.SSLError) as error:  # half written; the next look reads it whole
                    log.warning("cannot read its new certificate yet: %s", error)

    def _accept(self, door: socket.socket, target: int) -> None:
        while True:
            try:
                visitor, _ = door.accept()
            except OSError as error:  # it left at once, or there are too many open files
                log.warning("cannot let one in: %s", error)
                time.sleep(_ACCEPT_PAUSE_S)
                continue
            if not self._room.acquire(blocking=False):
                visitor.close()
                continue
            try:
                threading.Thread(target=self._visit, args=(visitor, target), daemon=True).start()
            except RuntimeError as error:  # the system gives no more threads
                log.warning("cannot let one in: %s", error)
                self._room.release()
                visitor.close()

    def _visit(self, visitor: socket.socket, target: int) -> None:
        try:
            visit(visitor, self._context, target)
        finally:
            self._room.release()


def _allow_open_files() -> None:
    """As many as the connections need, where the system lets us; many begin with 1024."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * _CONNECTIONS + _OTHER_FILES
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _stamp(plan: DoorPlan) -> tuple[int, ...]:
    return tuple(Path(file).stat().st_mtime_ns if Path(file).exists() else 0 for file in (plan.certificate, plan.key))


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n") and (part := os.read(0, 65_536)):
        line += part
    return line


def _end_with_stdin() -> None:
    while os.read(0, 65_536):
        pass
    os._exit(0)


def plan_text(plan: DoorPlan) -> str:
    """What is written into ``door.json``."""
    said: Mapping[str, Any] = asdict(plan)
    return json.dumps(said, indent=1)
