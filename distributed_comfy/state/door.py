"""The door of the embedded servers: TLS on an address of this host, passed on to their loopback ports.  Standard library only.

Redis has one list of addresses for its plain port and its TLS port, so it cannot speak TLS to the network and stay plain inside the host;
and not every program that can be embedded has TLS at all.  The door is a process of its own, started by the keeper while ``door.json`` is
there, and ends with it.  Who comes in is the server's decision, by its users.  What of an invited host passes then is decided here, by
rules that the process brings along (`distributed_comfy.serve.door`, which is its main module); it also removes invitations that expire,
so that none can be used late while it is open.

    keeper -- one JSON line: DoorOrder --> stdin, which stays open for as long as the door shall
"""
from __future__ import annotations

import functools
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from distributed_comfy.relay.rules import Judge
from distributed_comfy.relay.wire import Database
from distributed_comfy.state.door_login import NotLetIn
from distributed_comfy.state.door_visit import Reception, visit
from distributed_comfy.state.waiting_room import MOST, WaitingRoom

log = logging.getLogger(__name__)

_RESTART_INTERVAL_S = 2.0
"""The address may come later than the keeper, as that of a notebook does."""
_END_TIMEOUT_S = 2.0
_LOOK_INTERVAL_S = 5.0
"""How often the door looks whether its certificate was renewed."""
_CONNECTIONS = 1000
"""That have logged in; others wait in a room of their own."""
_CONNECTIONS_OF_USER = 400
"""A worker and its engine hold about fifteen."""
_KINDS_LOGGED = 1000
_OTHER_FILES = 64
_ACCEPT_PAUSE_S = 0.5
_RUN = "import sys; sys.path[:] = [sys.argv[1], *sys.path, *sys.argv[2:]]; from distributed_comfy.serve.door import main; main()"
"""Not `-S`: the rules know the scripts of Celery's transport, which may also lie where only PYTHONPATH leads."""
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
    prefixes: str = "dc:"
    """First parts of the keys of the clusters whose hosts were invited, with spaces between."""


@dataclass(frozen=True)
class DoorOrder:
    """A plan and where its two ports lead."""

    plan: DoorPlan
    state_target: int
    """Loopback port of the state server."""
    blob_target: int
    folder: str
    """Where the plan lies; its prefixes may grow while the door is open."""
    state_url: str = field(default="", repr=False)
    """By which the owner of the state server reaches it; empty: nobody looks after the invitations here."""
    blob_url: str = field(default="", repr=False)


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
        urls: of both for their owner, see `DoorOrder`.
        libraries: a folder in which the packages that we depend on lie, should the interpreter alone not find them.
    """

    def __init__(
        self, folder: Path, state_target: int, blob_target: int, urls: tuple[str, str] = ("", ""), libraries: str = ""
    ) -> None:
        self._folder = folder
        self._libraries = libraries
        self._targets = (state_target, blob_target)
        self._urls = urls
        self._process: subprocess.Popen[bytes] | None = None
        self._plan: DoorPlan | None = None
        self._started_s = -_RESTART_INTERVAL_S

    def tend(self) -> None:
        """Start, end or restart the process, as the plan of the moment wants it."""
        plan = read_plan(self._folder)
        if _opens_anew(self._plan, plan):
            self.shut()
            self._plan, self._started_s = plan, -_RESTART_INTERVAL_S
        running = self._process is not None and self._process.poll() is None
        if plan and not running and time.monotonic() - self._started_s >= _RESTART_INTERVAL_S:
            self.shut()
            self._started_s = time.monotonic()
            self._process = _launch(DoorOrder(plan, *self._targets, str(self._folder), *self._urls), self._libraries)

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


def _opens_anew(before: DoorPlan | None, after: DoorPlan | None) -> bool:
    """Whether the door must move; for one more prefix nobody's connections end."""
    return before is None or after is None or replace(before, prefixes=after.prefixes) != after


def _launch(order: DoorOrder, libraries: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-c", _RUN, _PACKAGE_ROOT, *([libraries] if libraries else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:  # it has just ended, which the next look sees
        pass
    return process


# -- the process itself --------------------------------------------------------------------------------------------------
def run_door(judge_of: Callable[[DoorPlan, Database, str, str], Judge | None], look_after: Callable[[DoorOrder], None]) -> None:
    """Do what the order on stdin says until stdin closes.

    Args:
        judge_of: says what passes for a user of one of the two servers with a secret; None: everything.
        look_after: called in a thread of its own for an order with the servers' URLs; need not return.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)-7s door: %(message)s", level="INFO")
    line = _read_line()
    if not line:
        return
    said = json.loads(line)
    order = DoorOrder(DoorPlan(**said.pop("plan")), **said)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        allow_open_files()
        door = _Door(order, judge_of)
        door.open()
        if order.state_url:
            threading.Thread(target=look_after, args=(order,), daemon=True).start()
        door.keep_certificate()
    except (OSError, ssl.SSLError) as error:
        log.error("cannot open: %s", error)
        sys.exit(1)


class _Door:
    """Listens at both ports, and lets in whoever comes, each with threads of its own."""

    def __init__(self, order: DoorOrder, judge_of: Callable[[DoorPlan, Database, str, str], Judge | None]) -> None:
        self._plan = order.plan
        self._folder = Path(order.folder)
        self._judge_of = judge_of
        self._waiting = WaitingRoom()
        self._guests: Counter[str] = Counter()
        """Connections that have come in, by user."""
        self._told: set[tuple[str, str, str]] = set()
        """Kinds of refused requests that the log has."""
        self._turn = threading.Lock()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        places: tuple[tuple[int, int, Database], ...] = (
            (order.plan.state_port, order.state_target, "state"), (order.plan.blob_port, order.blob_target, "blobs"),
        )  # fmt: skip
        self._receptions = {port: self._reception(target, database) for port, target, database in places}
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
        doors = {port: socket.create_server((plan.address, port), family=family) for port in self._receptions}
        for port, door in doors.items():
            threading.Thread(target=self._accept, args=(door, self._receptions[port]), daemon=True).start()
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

    def _reception(self, target: int, database: Database) -> Reception:
        def judge_of(user: str, secret: str) -> Judge | None:
            return self._judge_of(read_plan(self._folder) or self._plan, database, user, secret)

        return Reception(self._context, target, judge_of, self._report, self._place_of)

    def _accept(self, door: socket.socket, reception: Reception) -> None:
        while True:
            try:
                visitor, (address, *_) = door.accept()
            except OSError as error:  # it left at once, or there are too many open files
                log.warning("cannot let one in: %s", error)
                time.sleep(_ACCEPT_PAUSE_S)
                continue
            self._waiting.enter(address, visitor, functools.partial(_send_away, visitor))
            try:
                threading.Thread(target=self._visit, args=(visitor, address, reception), daemon=True).start()
            except RuntimeError as error:  # the system gives no more threads
                log.warning("cannot let one in: %s", error)
                self._waiting.leave(address, visitor)
                visitor.close()

    def _visit(self, visitor: socket.socket, address: str, reception: Reception) -> None:
        try:
            visit(visitor, reception, lambda: self._waiting.leave(address, visitor))
        finally:
            self._waiting.leave(address, visitor)

    @contextmanager
    def _place_of(self, user: str) -> Iterator[None]:
        with self._turn:
            if self._guests.total() >= _CONNECTIONS or self._guests[user] >= _CONNECTIONS_OF_USER:
                raise NotLetIn(f"{user} has {self._guests[user]} connections, and all together {self._guests.total()}")
            self._guests[user] += 1
        try:
            yield
        finally:
            with self._turn:
                self._guests[user] -= 1
                self._guests += Counter()  # forgets users without any

    def _report(self, user: str, command: str, reason: str) -> None:
        """Logs each kind of refused request once."""
        kind = (user, command, reason)
        with self._turn:
            known = kind in self._told or len(self._told) >= _KINDS_LOGGED
            self._told.update(() if known else (kind,))
        if not known:
            log.warning("%s: %s refused: %s", user, command, reason)


def _send_away(visitor: socket.socket) -> None:
    with suppress(OSError):
        visitor.shutdown(socket.SHUT_RDWR)  # its thread hears it, and closes it


def allow_open_files(connections: int = _CONNECTIONS + MOST) -> None:
    """As many as so many connections from here to there need, where the system lets us; many begin with 1024."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * connections + _OTHER_FILES
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
