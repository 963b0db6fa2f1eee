"""Opens and shuts the door of the embedded servers: its address, its ports, its certificates; `state.door` is the process that does it."""
from __future__ import annotations

import errno
import logging
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distributed_comfy.errors import DoorRefused, SettingInvalid
from distributed_comfy.state.door import DoorPlan, door_file, plan_text, read_plan
from distributed_comfy.state.server_process import write_secret

log = logging.getLogger(__name__)

_OPEN_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 2.0
_ELSEWHERE = ("192.0.2.1", 9)
"""An address of a net that is for documentation: nothing is sent to it, the system only says how it would."""
DEFAULT_PORT = 47_380
"""Of the state server; that of the blob server is the next one."""
_LISTEN_REMEDIES = {
    errno.EADDRINUSE: "; end the program that listens there, or take another port: `distributed-comfy invite --port N`",
    errno.EADDRNOTAVAIL: "; give an address that this computer has",
}


@dataclass(frozen=True)
class Door:
    """An open door."""

    address: str
    state_port: int
    blob_port: int
    ca: str
    """Certificate of the authority, PEM."""
    fingerprint: str

    @property
    def url(self) -> str:
        """Of the state server, from the network."""
        return f"rediss://{bracketed(self.address)}:{self.state_port}/0"

    @property
    def blob_url(self) -> str:
        """Of the blob server."""
        return f"rediss://{bracketed(self.address)}:{self.blob_port}/0"


def open_door(folder: Path, address: str, port: int | None = None, *, prefix: str = "dc:") -> Door:
    """Open the door of the embedded servers; one that is open already keeps its ports, unless certain others are asked for.

    Args:
        folder: of the embedded servers.
        address: of this host, that other hosts reach.
        port: of the state server, and the next one of the blob server; 0: free ones; by default as it was, else `DEFAULT_PORT`.
        prefix: first part of the keys of the cluster that invites.
    Raises:
        SettingInvalid: no such address here, or the port is taken.
        DoorRefused: the door does not open.
    """
    before = read_plan(folder)
    if before is not None and before.address == address and port in (None, 0, before.state_port):
        ports = (before.state_port, before.blob_port)
    else:
        ports = _ports(address, port, before)
        if before is not None:
            moved = f"{before.address} port {before.state_port} to {address} port {ports[0]}"
            log.warning("the door moves from %s: hosts that were invited before must be invited again", moved)
    from distributed_comfy.access.certificates import ensure_certificates  # brings a library that agents and workers can do without

    certificates = ensure_certificates(folder / "tls", _names(address))
    prefixes = " ".join(sorted({prefix, *(before.prefixes.split() if before else ())}))
    plan = DoorPlan(address, *ports, str(certificates.certificate), str(certificates.key), prefixes)
    if plan != before:
        write_secret(door_file(folder), plan_text(plan))
    door = Door(address, *ports, certificates.ca.read_text(encoding="utf-8"), certificates.fingerprint)
    _wait_until_open(folder, door)
    return door


def renew_door(folder: Path) -> None:
    """Renew the certificate of an open door where that is due; the door takes it by itself."""
    from distributed_comfy.access.certificates import ensure_certificates

    plan = read_plan(folder)
    if plan is not None:
        ensure_certificates(folder / "tls", _names(plan.address))


def lan_address() -> str:
    """This host's address on the network of its default route.

    Raises:
        SettingInvalid: it has none.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
            address = str(probe.getsockname()[0])
        except OSError as error:
            reason = f"this host has no default route ({error.strerror}); say with --bind ADDRESS which of its addresses others reach"
            raise SettingInvalid(name="--lan", reason=reason) from error
    return address


def bracketed(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def _names(address: str) -> Iterable[str]:
    return (address,)


def _ports(address: str, port: int | None, before: DoorPlan | None) -> tuple[int, int]:
    """The port and the next one, both free here."""
    if port == 0:
        return _free_port(address), _free_port(address)
    first = DEFAULT_PORT if port is None else port
    mine = (before.state_port, before.blob_port) if before and before.address == address else ()
    for each in (first, first + 1):
        if each not in mine:
            _try_port(address, each)
    return first, first + 1


def _free_port(address: str) -> int:
    return _try_port(address, 0)


def _try_port(address: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            name = "--port" if port else "--bind"
            reason = f"cannot listen on {address} port {port}: {error.strerror}{_LISTEN_REMEDIES.get(error.errno or 0, '')}"
            raise SettingInvalid(name=name, reason=reason) from error
        return int(probe.getsockname()[1])


def _wait_until_open(folder: Path, door: Door) -> None:
    """
    Raises:
        DoorRefused: the keeper of the servers does not open it.
    """
    context = ssl.create_default_context(cadata=door.ca)
    deadline, reason = time.monotonic() + _OPEN_TIMEOUT_S, "it does not answer"
    while time.monotonic() < deadline:
        try:
            for port in (door.state_port, door.blob_port):
                with socket.create_connection((door.address, port), _ANSWER_TIMEOUT_S) as plain:
                    context.wrap_socket(plain, server_hostname=door.address).close()
            return
        except (OSError, ssl.SSLError) as error:
            reason = str(error)
            time.sleep(0.05)
    remedy = f"see {folder / 'keeper.log'}"
    raise DoorRefused(what=f"{door.address} port {door.state_port}", reason=reason, remedy=remedy)
