"""Visitors who have not logged in yet: bounded in all and for each address, so that strangers take no room from hosts.

Whoever comes when there is no room left is let in, and the one who has waited longest of those with the same address, or of the address
with the most, has to go: who logs in at once is not kept out by those who do not.  Standard library only.
"""
from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

MOST = 512
MOST_OF_ADDRESS = 128
"""Hosts behind one router have one address, and their workers may all begin at the same moment."""
_V6_NETWORK = 64
"""Whoever has one IPv6 address has these many bits of them."""


class WaitingRoom:
    """Safe to use from several threads.

    Args:
        most: of all addresses.
        most_of_address: of one.
    """

    def __init__(self, most: int = MOST, most_of_address: int = MOST_OF_ADDRESS) -> None:
        self._most = most
        self._most_of_address = most_of_address
        self._waiting: dict[str, OrderedDict[Hashable, Callable[[], object]]] = {}
        self._turn = threading.Lock()

    def enter(self, address: str, visitor: Hashable, send_away: Callable[[], object]) -> None:
        """Wait for what a visitor says; another one may be sent away for it.

        Args:
            address: where it comes from.
            visitor: whatever tells it from others.
            send_away: ends its connection; must not wait, nor call this room.
        """
        with self._turn:
            who = group_of(address)
            if len(self._waiting.get(who, ())) >= self._most_of_address:
                self._send_away(who)
            elif sum(map(len, self._waiting.values())) >= self._most:
                self._send_away(max(self._waiting, key=lambda other: len(self._waiting[other])))
            self._waiting.setdefault(who, OrderedDict())[visitor] = send_away

    def leave(self, address: str, visitor: Hashable) -> None:
        """It has logged in, or is gone; without effect where it was sent away."""
        with self._turn:
            self._remove(group_of(address), visitor)

    def _send_away(self, who: str) -> None:
        oldest, send_away = next(iter(self._waiting[who].items()))
        send_away()
        self._remove(who, oldest)

    def _remove(self, who: str, visitor: Hashable) -> None:
        of_address = self._waiting.get(who)
        if of_address is not None:
            of_address.pop(visitor, None)
            if not of_address:
                del self._waiting[who]


def group_of(address: str) -> str:
    """What counts as one address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found) if found.version == 4 else str(ipaddress.ip_network((found, _V6_NETWORK), strict=False))
