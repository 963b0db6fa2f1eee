"""Which user of this host is at the other end of a connection from this host, where the system tells (Linux)."""
from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_TABLES = ("tcp", "tcp6")
_ROOT = 0


def may_be_own(address: str, port: int, folder: Path = Path("/proc/net")) -> bool:
    """Whether this process' user (or root) is at the other end; true too where the system does not tell.

    Args:
        address: the other end's, of loopback.
        port: the other end's.
        folder: where Linux tells its sockets.
    """
    if sys.platform != "linux":
        return True
    found = set(_owners(address, port, folder))
    return not found or bool(found & {os.getuid(), _ROOT})


def _owners(address: str, port: int, folder: Path) -> Iterator[int]:
    wanted = ipaddress.ip_address(address.split("%")[0])
    for name in _TABLES:
        try:
            lines = (folder / name).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            place, _, number = words[1].partition(":")
            if int(number, 16) == port and _same(_address(place), wanted):
                yield int(words[7])


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Linux writes each four bytes as a number of this machine's byte order."""
    parts = [bytes.fromhex(text[start : start + 8]) for start in range(0, len(text), 8)]
    ordered = b"".join(part[::-1] if sys.byteorder == "little" else part for part in parts)
    return ipaddress.ip_address(ordered)


def _same(
    found: ipaddress.IPv4Address | ipaddress.IPv6Address, wanted: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> bool:
    """An IPv4 connection may be listed as one of IPv6."""
    return found == wanted or getattr(found, "ipv4_mapped", None) == wanted or getattr(wanted, "ipv4_mapped", None) == found
