"""Opens WebSockets to the relay, and says what is wrong where that fails: whose fault it is, and what to do."""
from __future__ import annotations

import asyncio
import base64
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import aiohttp

from distributed_comfy.errors import (
    ClusterUnavailable,
    RelayAbsent,
    RelayForbidden,
    RelayPauses,
    RelayRefused,
    RelayTlsFailed,
    RelayUnreachable,
    RelayWithoutWebSockets,
    SettingInvalid,
)
from distributed_comfy.relay.address import RelayAddress
from distributed_comfy.relay.carrying import ClientSocket
from distributed_comfy.relay.wire import (
    HANDSHAKE_S,
    MESSAGE_BYTES,
    MESSAGE_LIMIT_BYTES,
    REASON_HEADER,
    SUBPROTOCOL,
    VERSION_HEADER,
    Database,
)

_AT_ONCE = 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
_REFUSED_S = 15.0
"""A secret that was refused is not tried again before."""
_AWAY = (502, 503, 504, 520, 521, 522, 523, 524, 530)
"""What proxies, Cloudflare's own numbers included, say when nobody is behind them."""


@dataclass
class Pause:
    """How long to wait before the next try, so that all connections of all workers do not come back in one moment."""

    failures: int = 0
    failed_at: float = 0.0

    def length_s(self, chance: float) -> float:
        """
        Args:
            chance: 0 to 1; half of each pause is fixed.
        """
        if not self.failures or time.monotonic() - self.failed_at > 10 * _LONGEST_PAUSE_S:
            return 0.0
        full = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self.failures - 1, 16))
        return full * (0.5 + chance / 2)

    def tried(self, *, well: bool) -> None:
        """A try has ended."""
        self.failures = 0 if well else self.failures + 1
        self.failed_at = time.monotonic()


@dataclass
class Dialer:
    """Opens connections to one relay as one user.

    Args:
        address: of the relay.
        user: of Redis.
        secret: of the user.
        ca: certificate (PEM) of the one authority to trust; empty: those of the system.
    """

    address: RelayAddress
    user: str
    secret: str = field(repr=False)
    ca: str = field(default="", repr=False)
    pause: Pause = field(default_factory=Pause)
    _refused: tuple[float, RelayRefused] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            self._tls = ssl.create_default_context(cadata=self.ca or None)
        except (OSError, ValueError) as error:
            raise SettingInvalid(name="the relay's CA", reason=f"it is no certificate: {error}") from error
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def open(
        self, session: aiohttp.ClientSession, database: Database, wanted: Callable[[], bool] = lambda: True
    ) -> ClientSocket:
        """A WebSocket behind which Redis has logged the user in.

        Args:
            session: `make_session`.
            database: to which server.
            wanted: asked when it is this connection's turn: whoever asked for it may have given up.
        Raises:
            RelayUnreachable, RelayTlsFailed, RelayRefused, RelayForbidden, RelayAbsent, RelayWithoutWebSockets: see there.
        """
        async with self._turn:
            await asyncio.sleep(self.pause.length_s(random.random()))
            if not wanted():
                raise RelayUnreachable(url=self.address.base, reason="it was not asked in time")
            if self._refused is not None and time.monotonic() - self._refused[0] < _REFUSED_S:
                raise self._refused[1]
            try:
                socket = await asyncio.wait_for(self._open(session, self.address.of(database)), HANDSHAKE_S)
            except (aiohttp.ClientError, OSError, TimeoutError, asyncio.TimeoutError) as error:
                self.pause.tried(well=False)
                told = explain(error, self.address.base, self.user)
                self._refused = (time.monotonic(), told) if isinstance(told, RelayRefused) else None
                raise told from error
            self.pause.tried(well=True)
            return socket

    async def databases(self, session: aiohttp.ClientSession) -> dict[str, int]:
        """The numbers of the databases behind the relay, which are part of the names of Celery's channels; empty where it does not say."""

        async def ask() -> dict[str, int]:
            async with session.get(self.address.health, ssl=self._tls, proxy=self.address.proxy()) as answer:
                found = (await answer.json()).get("databases", {})
            return {str(name): int(number) for name, number in found.items()}

        try:
            return await asyncio.wait_for(ask(), HANDSHAKE_S)
        except (aiohttp.ClientError, OSError, ValueError, AttributeError, TypeError, TimeoutError, asyncio.TimeoutError):
            return {}

    async def _open(self, session: aiohttp.ClientSession, url: str) -> ClientSocket:
        login = base64.b64encode(f"{self.user}:{self.secret}".encode()).decode()
        return await session.ws_connect(
            url,
            headers={"Authorization": f"Basic {login}"},
            protocols=(SUBPROTOCOL,),
            autoping=False,
            compress=0,
            max_msg_size=MESSAGE_LIMIT_BYTES,
            ssl=self._tls,
            proxy=self.address.proxy(),
        )


def make_session() -> aiohttp.ClientSession:
    """A session for any number of WebSockets; closed by whoever asked for it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=aiohttp.ClientTimeout(total=None), read_bufsize=4 * MESSAGE_BYTES
    )


def explain(error: BaseException, url: str, user: str) -> ClusterUnavailable:
    """What a failed handshake means."""
    if isinstance(error, aiohttp.WSServerHandshakeError):
        return _explain_answer(error, url, user)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return RelayUnreachable(url=url, reason=f"this system's proxy answers {error.status} {error.message}")
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return RelayUnreachable(url=url, reason=f"this system's proxy at {error.host}:{error.port} cannot be reached")
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError)):
        return RelayTlsFailed(url=url, reason=_tls_reason(error))
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return RelayUnreachable(url=url, reason=f"the name {error.host} is not known here")
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return RelayUnreachable(url=url, reason=f"nothing came within {HANDSHAKE_S:.0f} s")
    if isinstance(error, aiohttp.ClientConnectorError):
        return RelayUnreachable(url=url, reason=error.os_error.strerror or str(error.os_error))
    if isinstance(error, aiohttp.TooManyRedirects):
        return RelayAbsent(url=url, reason="it sends whoever asks elsewhere, as a page for logging in does")
    if isinstance(error, aiohttp.ClientResponseError):
        return RelayAbsent(url=url, reason=f"what answers there does not speak HTTP as it should ({error.message})")
    return RelayUnreachable(url=url, reason=str(error) or type(error).__name__)


def _explain_answer(error: aiohttp.WSServerHandshakeError, url: str, user: str) -> ClusterUnavailable:
    headers: Mapping[str, str] = error.headers or {}
    said, ours = headers.get(REASON_HEADER, ""), VERSION_HEADER in headers
    answer = f"{error.status} {said or error.message}".strip()
    if error.status == 401 and (ours or said):
        return RelayRefused(url=url, user=user, reason=said or error.message)
    if error.status == 401:
        return RelayForbidden(url=url, reason="401 from a proxy before it, which wants a login of its own")
    if error.status == 403:
        return RelayForbidden(url=url, reason=said or "403 from a proxy before it; its rules must let WebSockets of programs through")
    if error.status == 429 and ours:
        return RelayPauses(url=url, reason=said or error.message)
    if error.status == 429 or error.status in _AWAY:
        return RelayUnreachable(url=url, reason=said if ours else f"a proxy before it answers {answer}")
    if (ours and error.status in (400, 426)) or error.status == 101:
        return RelayWithoutWebSockets(url=url, reason=said or error.message)
    return RelayAbsent(url=url, reason=f"the answer is {answer}")


def _tls_reason(error: BaseException) -> str:
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return str(getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or cause)
