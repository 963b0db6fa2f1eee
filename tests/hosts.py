"""Several hosts on one machine: network namespaces with cables between them.  Needs root and iproute2 (`need_hosts`).

    with Network() as net:
        master, worker = net.host("master"), net.host("worker")
        here, there = net.cable(master, worker)              addresses of the two ends
        process = worker.start("python", "-m", ...)          sees this host's network and nothing else

A host shares files and processes with all others, but no interface, no loopback and no port.
"""
from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tests.conftest import missing_service

_TIMEOUT_S = 20.0
_NETWORK = 0x40000000
"""CLONE_NEWNET."""


def need_hosts(*, nat: bool = False) -> None:
    """Skip the test, or fail it in CI, where there can be no namespaces.

    Args:
        nat: it uses `Network.hide`, too.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        missing_service("root on Linux for network namespaces", "run it as root")
    for program, package in (("ip", "iproute2"), ("ss", "iproute2"), *((("nft", "nftables"),) if nat else ())):
        if shutil.which(program) is None:
            missing_service(f"the program {program}", f"install it (Debian, Ubuntu: apt-get install {package})")
    name = f"dc-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        missing_service("a kernel that makes network namespaces", made.stderr.strip())
    _ip("netns", "del", name)


@dataclass
class Host:
    """One network namespace."""

    name: str
    namespace: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a process here; whatever still runs at the network's end is killed. ``options`` are those of `subprocess.Popen`."""
        process = subprocess.Popen(["ip", "netns", "exec", self.namespace, *command], **{"text": True, **options})
        self.processes.append(process)
        return process

    def run(self, *command: str, env: Mapping[str, str] | None = None, timeout_s: float = _TIMEOUT_S) -> str:
        """Run a command to its end; what it printed."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace, *command], env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"{command} on {self.name}: {done.stdout}{done.stderr}"
        return done.stdout

    def listens(self) -> list[str]:
        """Addresses with ports on which something listens here, loopback included."""
        return [line.split()[3] for line in self.run("ss", "-ltnH").splitlines()]

    def cut(self, device: str) -> None:
        """Pull the cable: what is sent is lost, and nobody is told."""
        self._link(device, "down")

    def mend(self, device: str) -> None:
        """Plug it in again."""
        self._link(device, "up")

    @contextmanager
    def reached(self, port: int) -> Iterator[int]:
        """A port of this machine's own loopback that leads to one of the host's, for a browser that is not there."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=self._lead, args=(listener, port), daemon=True).start()
            try:
                yield listener.getsockname()[1]
            finally:
                listener.shutdown(socket.SHUT_RDWR)

    def _lead(self, listener: socket.socket, port: int) -> None:
        while True:
            try:
                visitor, _ = listener.accept()
            except OSError:  # it was shut
                return
            threading.Thread(target=self._join, args=(visitor, port), daemon=True).start()

    def _join(self, visitor: socket.socket, port: int) -> None:
        """Carry what one connection says; sockets that a thread opens are of the network that it has entered."""
        with visitor, open(f"/run/netns/{self.namespace}", "rb") as place:
            assert ctypes.CDLL(None, use_errno=True).setns(place.fileno(), _NETWORK) == 0
            try:
                with socket.create_connection(("127.0.0.1", port)) as inside:
                    back = threading.Thread(target=_carry, args=(inside, visitor), daemon=True)
                    back.start()
                    _carry(visitor, inside)
                    back.join()
            except OSError:  # nobody listens there
                return

    def _link(self, device: str, state: str) -> None:
        _ip("-n", self.namespace, "link", "set", "dev", device, state)


class Network:
    """Hosts and cables; all of it goes at the end, with the processes that were started in it."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(3)
        self._hosts: list[Host] = []
        self._cables = 0
        self._undo = ExitStack()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for host in self._hosts:
            for process in host.processes:
                if process.poll() is None:
                    process.kill()
                process.wait(_TIMEOUT_S)
        self._undo.close()

    def host(self, name: str) -> Host:
        """A new host with nothing but its loopback."""
        host = Host(name, f"dc-{self._mark}-{name}")
        _ip("netns", "add", host.namespace)
        self._undo.callback(_ip, "netns", "del", host.namespace)
        _ip("-n", host.namespace, "link", "set", "dev", "lo", "up")
        self._hosts.append(host)
        return host

    def cable(self, one: Host, other: Host, *, default_route: bool = True) -> tuple[str, str]:
        """A cable between two hosts, and a net of its own for it.

        Args:
            one: its device is called after ``other``'s name.
            other: the other way round.
            default_route: each end reaches what is behind the other by it, unless it has a default route already.
        Returns:
            Address of either end.
        """
        self._cables += 1
        ends = [(one, other, f"10.77.{self._cables}.1"), (other, one, f"10.77.{self._cables}.2")]
        names = [f"v{self._mark[:4]}{self._cables}{end}" for end in "ab"]
        _ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for device, (host, peer, address) in zip(names, ends, strict=True):
            _ip("link", "set", "dev", device, "netns", host.namespace, "name", peer.name)
            _ip("-n", host.namespace, "addr", "add", f"{address}/24", "dev", peer.name)
            _ip("-n", host.namespace, "link", "set", "dev", peer.name, "up")
        for (host, _, _), (_, _, gateway) in zip(ends, reversed(ends), strict=True):
            if default_route and not _ip("-n", host.namespace, "route", "show", "default"):
                _ip("-n", host.namespace, "route", "add", "default", "via", gateway)
        return ends[0][2], ends[1][2]

    @staticmethod
    def hide(router: Host, outside: Host) -> None:
        """Make a host a router whose insiders call out by its own address, and which nobody outside can call.

        Args:
            router: cabled to its insiders and to ``outside``.
            outside: at whose cable the addresses are translated.
        """
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        rules = (
            "add table ip dc",
            "add chain ip dc out { type nat hook postrouting priority 100 ; }",
            f"add rule ip dc out oifname {outside.name} masquerade",
            "add chain ip dc through { type filter hook forward priority 0 ; }",
            f"add rule ip dc through iifname {outside.name} ct state new drop",
        )
        for rule in rules:
            router.run("nft", rule)


def _carry(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout
