"""Who may open a relayed connection: nobody without name and secret, no web page, nobody in the clear, and nobody who guesses."""
from __future__ import annotations

import base64
import binascii
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from distributed_comfy.relay.address import is_loopback
from distributed_comfy.relay.wire import SUBPROTOCOL

_FREE_FAILURES = 5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_FORGOTTEN_AFTER_S = 600.0
_REMEMBERED = 4096


@dataclass(frozen=True)
class Login:
    """What a client says it is."""

    user: str
    secret: str


class Refused(Exception):
    """The answer to a client that may not come in."""

    def __init__(self, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class Attempts:
    """Failed logins per address and user; each one past the first few doubles the time for which the two are not listened to.

    Not per address alone: hosts share one behind a router, and one that was shut out must not keep its neighbours out.

    Args:
        now: a clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._failed: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def wait_s(self, address: str, user: str) -> float:
        """How long they have to wait still; 0: they may try."""
        count, last = self._failed.get((address, user), (0, 0.0))
        since = self._now() - last
        if count < _FREE_FAILURES or since > _FORGOTTEN_AFTER_S:
            return 0.0
        return max(0.0, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(count - _FREE_FAILURES, 16)) - since)

    def failed(self, address: str, user: str) -> None:
        """Count one."""
        count, last = self._failed.pop((address, user), (0, self._now()))
        forgotten = self._now() - last > _FORGOTTEN_AFTER_S
        self._failed[address, user] = (1 if forgotten else count + 1, self._now())
        while len(self._failed) > _REMEMBERED:
            self._failed.popitem(last=False)

    def succeeded(self, address: str, user: str) -> None:
        """Forget their failures."""
        self._failed.pop((address, user), None)


def check_way(request: web.Request, *, allow_plain: bool) -> None:
    """Refuse web pages, which a browser would let log in with what it remembers, and whoever sends a secret in the clear.

    A proxy on this host, or before it, says in ``X-Forwarded-Proto`` how its client came.

    Raises:
        Refused: 403.
    """
    if "Origin" in request.headers:
        raise Refused(403, "web pages may not use the relay")
    if not is_private(request) and not allow_plain:
        raise Refused(403, "the connection is not encrypted: use wss:// (or start serve with --allow-plain in a network you trust)")


def is_private(request: web.Request) -> bool:
    """Whether nobody on the way can read along; a proxy says how its client came, see `check_way`."""
    forwarded = request.headers.get("X-Forwarded-Proto", "").split(",")[0].strip().lower()
    return forwarded in ("https", "wss") if forwarded else request.secure or _is_near(request.remote)


def login_of(request: web.Request) -> Login:
    """User and secret, by HTTP's Basic scheme or, where a proxy takes that header for itself, as a subprotocol.

    Raises:
        Refused: 401, where neither is there or can be read.
    """
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        offered = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        encoded = next((name.removeprefix("basic.") for name in offered if name.startswith("basic.")), "")
    try:
        user, colon, secret = base64.b64decode(_standard(encoded.strip()), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        user = colon = secret = ""
    if not (user and colon and secret) or len(user) + len(secret) > 4096:
        raise Refused(401, "name and secret are missing")
    return Login(user, secret)


def address_of(request: web.Request) -> str:
    """Where a client is: the peer, or whom a proxy on this host names last (what comes before that the client may have made up)."""
    peer = request.remote or "?"
    last = request.headers.get("X-Forwarded-For", "").split(",")[-1].strip()
    return last if _is_near(request.remote) and _is_address(last) else peer


def accepted_protocols(request: web.Request) -> tuple[str, ...]:
    """The subprotocol to choose: ours where it was offered; the one with the secret is never repeated."""
    offered = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    return (SUBPROTOCOL,) if SUBPROTOCOL in offered else ()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_near(address: str | None) -> bool:
    """Whether a peer is on this host; one that came by a Unix socket has no address."""
    return not address or is_loopback(address)


def _standard(encoded: str) -> str:
    """Base64 with the characters and the padding that a subprotocol's name may not have."""
    plain = encoded.replace("-", "+").replace("_", "/")
    return plain + "=" * (-len(plain) % 4)
