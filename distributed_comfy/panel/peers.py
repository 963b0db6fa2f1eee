"""Which user of this host is at the other end of a connection from this host, where the system tells (Linux)."""
from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_TABLES = ("tcp", "tcp6")
_ESTABLISHED = "01"

Place = tuple[str, int]
"""Address and port of one end of a connection."""


def may_be_own(far: Place, near: Place, folder: Path = Path("/proc/net")) -> bool:
    """Whether a process of this process' user, and of nobody else, is at the far end; true too where the system does not tell.

    A program of root's at the far end is none of the user's own: it may be a proxy for somebody elsewhere, as that of containers is.

    Args:
        far: the other end, on this host.
        near: our end, without which a socket that another user has just left from the same port would be taken for this one.
        folder: where Linux tells its sockets.
    """
    if sys.platform != "linux":
        return True
    tables = [table for name in _TABLES if (table := _read(folder / name)) is not None]
    owners = {owner for table in tables for owner in _owners(table, far, near)}
    return owners == {os.getuid()} if tables else True


def _read(path: Path) -> list[str] | None:
    try:
        return path.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return None


def _owners(table: list[str], far: Place, near: Place) -> Iterator[int]:
    for line in table:
        words = line.split()
        if words[3] == _ESTABLISHED and _is_at(words[1], far) and _is_at(words[2], near):
            yield int(words[7])


def _is_at(text: str, place: Place) -> bool:
    address, _, port = text.partition(":")
    return int(port, 16) == place[1] and _same(_address(address), ipaddress.ip_address(place[0].split("%")[0]))


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
