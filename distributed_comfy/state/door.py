"""The door of the embedded servers: TLS on an address of this host, passed on to their loopback ports.  Standard library only.

Redis has one list of addresses for its plain port and its TLS port, so it cannot speak TLS to the network and stay plain inside the host;
and not every program that can be embedded has TLS at all.  The door is a process of its own, started by the keeper while ``door.json`` is
there, and ends with it.  It knows no password: who comes in is the server's decision, by its users.

    keeper -- one JSON line: DoorOrder --> stdin, which stays open for as long as the door shall
"""
from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_RESTART_INTERVAL_S = 2.0
"""The address may come later than the keeper, as that of a notebook does."""
_END_TIMEOUT_S = 2.0
_HANDSHAKE_TIMEOUT_S = 10.0
_LOOK_INTERVAL_S = 5.0
"""How often the door looks whether its certificate was renewed."""
_CONNECTIONS = 1000
_BUFFER_BYTES = 2**20
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
        asyncio.run(_serve(DoorOrder(DoorPlan(**order.pop("plan")), **order)))
    except (OSError, ssl.SSLError) as error:
        log.error("cannot open: %s", error)
        sys.exit(1)


async def _serve(order: DoorOrder) -> None:
    plan = order.plan
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(plan.certificate, plan.key)
    loop, visitors = asyncio.get_running_loop(), set[_Visitor]()
    for port, target in ((plan.state_port, order.state_target), (plan.blob_port, order.blob_target)):
        make = _visitor_factory(target, visitors)
        await loop.create_server(make, plan.address, port, ssl=context, ssl_handshake_timeout=_HANDSHAKE_TIMEOUT_S)
        log.info("open at %s port %d", plan.address, port)
    seen = _stamp(plan)
    while True:
        await asyncio.sleep(_LOOK_INTERVAL_S)
        if _stamp(plan) != seen:
            try:
                context.load_cert_chain(plan.certificate, plan.key)
                seen = _stamp(plan)
                log.info("uses its new certificate")
            except (OSError, ssl.SSLError) as error:  # half written; the next look reads it whole
                log.warning("cannot read its new certificate yet: %s", error)


def _stamp(plan: DoorPlan) -> tuple[int, ...]:
    return tuple(Path(file).stat().st_mtime_ns if Path(file).exists() else 0 for file in (plan.certificate, plan.key))


def _visitor_factory(target: int, visitors: set[_Visitor]) -> Any:
    return lambda: _Visitor(target, visitors)


class _Side(asyncio.Protocol):
    """One of the two connections that are one; what comes in here goes out at the other."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        if self.other and self.other.transport:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other and self.other.transport:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other and self.other.transport and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.other and self.other.transport:
            self.other.transport.close()


class _Visitor(_Side):
    """The side on the network, after its handshake; it is heard once the server's side is there."""

    def __init__(self, target: int, visitors: set[_Visitor]) -> None:
        super().__init__()
        self._target = target
        self._visitors = visitors
        self._entering: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.pause_reading()
        if len(self._visitors) >= _CONNECTIONS:
            transport.abort()
            return
        self._visitors.add(self)
        self._entering = asyncio.ensure_future(self._enter())

    def connection_lost(self, error: Exception | None) -> None:
        self._visitors.discard(self)
        if self._entering:
            self._entering.cancel()
        super().connection_lost(error)

    async def _enter(self) -> None:
        assert self.transport is not None
        try:
            _, inner = await asyncio.get_running_loop().create_connection(_Side, "127.0.0.1", self._target)
        except OSError as error:
            log.warning("the server behind does not answer: %s", error)
            self.transport.abort()
            return
        self.other, inner.other = inner, self
        self.transport.resume_reading()


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
