"""A slow, long line between this host and a namespace of its own, of real packets: needs root, ``ip`` and ``/dev/net/tun``.

Two TUN devices, one here and one in the namespace, and a process between them that hands packets over as a line of a given rate and delay
would: each waits until those before it are through, then for the delay; what finds the line's buffer full is lost.  The kernel's own
``netem`` does the same, but many kernels are built without it.  ``python -m benchmarks.slow_link NEAR FAR RATE DELAY`` is that process;
``python -m benchmarks.slow_link send HOST PORT BYTES`` sends bytes over a bare socket, as a floor for everything else.
"""
from __future__ import annotations

import fcntl
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.worker import ROOT

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET_BYTES = 2048
_READ_TOGETHER = 64
_BUFFER_S = 0.1
"""What a line's buffer holds, in seconds of its rate, as home routers have it."""


@dataclass(frozen=True)
class SlowLink:
    """A line that is up."""

    near: str
    """Address of this end."""
    namespace: str

    @property
    def inside(self) -> list[str]:
        """What to put before a command that is to run at the far end."""
        return ["ip", "netns", "exec", self.namespace]


def missing() -> str:
    """What such a line needs and this process has not; empty where it can be had."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "root on Linux"
    if shutil.which("ip") is None:
        return "the program ip (Debian's iproute2)"
    return "" if os.path.exists("/dev/net/tun") else "/dev/net/tun"


@contextmanager
def slow_link(*, rate_mbit: float, round_trip_s: float) -> Iterator[SlowLink]:
    """A line of this rate in each direction; its namespace, devices and process end with the context."""
    number = os.getpid() % 16384
    namespace, near_device, far_device = f"dc-far-{os.getpid()}", f"dcn{number}", f"dcf{number}"
    # 198.18.0.0/15 is set aside for measuring networks (RFC 2544).
    subnet = f"198.{18 + number // 8192}.{number // 32 % 256}"
    near, far = f"{subnet}.{number % 32 * 4 + 1}", f"{subnet}.{number % 32 * 4 + 2}"
    with ExitStack() as ending:
        _ip("netns", "add", namespace)
        ending.callback(_ip, "netns", "delete", namespace)
        command = [sys.executable, "-m", "benchmarks.slow_link", near_device, far_device, str(rate_mbit * 125_000), str(round_trip_s / 2)]
        line = ending.enter_context(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        ending.callback(line.terminate)
        assert line.stdout is not None
        if line.stdout.readline() != "ready\n":
            raise OSError(f"there is no line from {near_device} to {far_device}")
        _ip("link", "set", far_device, "netns", namespace)
        for address, device, where in ((near, near_device, []), (far, far_device, ["-n", namespace])):
            _ip(*where, "address", "add", f"{address}/30", "dev", device)
            _ip(*where, "link", "set", device, "up", "txqueuelen", "4000")
        _ip("-n", namespace, "link", "set", "lo", "up")
        yield SlowLink(near, namespace)


def bare_seconds(link: SlowLink, size_bytes: int) -> float:
    """Seconds from a far process's connecting until all of its bytes are here."""
    with socket.create_server((link.near, 0)) as listener:
        port = str(listener.getsockname()[1])
        sender = subprocess.Popen(
            [*link.inside, sys.executable, "-m", "benchmarks.slow_link", "send", link.near, port, str(size_bytes)], cwd=ROOT
        )
        connection, _ = listener.accept()
        with connection:
            began = struct.unpack("<d", connection.recv(8, socket.MSG_WAITALL))[0]
            room = memoryview(bytearray(2**20))
            left = size_bytes
            while left and (got := connection.recv_into(room)):
                left -= got
            seconds = time.monotonic() - began
        sender.wait()
    return seconds


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _send(host: str, port: int, size_bytes: int) -> None:
    began = time.monotonic()  # of this host, so the same for both ends
    with socket.create_connection((host, port)) as connection:
        connection.sendall(struct.pack("<d", began) + bytes(size_bytes))


# -- the process in the middle ------------------------------------------------------------------------------------------
class _Direction:
    """Packets on their way from one device to the other."""

    def __init__(self, source: int, target: int, rate_bytes_s: float, delay_s: float) -> None:
        self._source, self._target, self._rate_bytes_s, self._delay_s = source, target, rate_bytes_s, delay_s
        self._free_at = 0.0
        self._packets: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        """Read what was sent; each packet's arrival follows from those before it."""
        for _ in range(_READ_TOGETHER):
            try:
                packet = os.read(self._source, _PACKET_BYTES)
            except BlockingIOError:
                return
            now = time.monotonic()
            begins = max(now, self._free_at)
            if begins - now <= _BUFFER_S:
                self._free_at = begins + len(packet) / self._rate_bytes_s
                self._packets.append((self._free_at + self._delay_s, packet))

    def give(self) -> float:
        """Hand over what has arrived; seconds until the next does."""
        while self._packets:
            wait_s = self._packets[0][0] - time.monotonic()
            if wait_s > 0:
                return wait_s
            try:
                os.write(self._target, self._packets.popleft()[1])
            except OSError:  # the device is not up (any more): lost, as on any line
                continue
        return 1.0


def _carry(names: Sequence[str], rate_bytes_s: float, delay_s: float) -> None:
    near, far = (_device(name) for name in names)
    directions = {near: _Direction(near, far, rate_bytes_s, delay_s), far: _Direction(far, near, rate_bytes_s, delay_s)}
    print("ready", flush=True)
    while True:
        wait_s = min(direction.give() for direction in directions.values())
        readable, _, _ = select.select([near, far, sys.stdin], [], [], wait_s)
        if sys.stdin in readable:  # closed: whoever started this has gone
            return
        for device in readable:
            directions[device].take()


def _device(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


if __name__ == "__main__":
    if sys.argv[1] == "send":
        _send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        _carry(sys.argv[1:3], float(sys.argv[3]), float(sys.argv[4]))
