"""Opens connections to a Redis server as the user who asks; what Redis says about user and secret is what counts."""
from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from distributed_comfy.relay.carrying import Stream
from distributed_comfy.relay.requests import make_request
from distributed_comfy.relay.wire import HANDSHAKE_S, MESSAGE_BYTES, CloseCode

_WRONG_LOGIN = re.compile(rb"-(WRONGPASS|NOAUTH|ERR (invalid|AUTH|Client sent AUTH))", re.IGNORECASE)

_ALIVE = re.compile(rb"\+PONG|-(NOAUTH|NOPERM|DENIED)\b")
"""Not BUSY, LOADING, MASTERDOWN and the like: it does nothing for anybody then."""


class LoginRefused(Exception):
    """Redis does not know the user, or not with this secret."""


class RedisAway(Exception):
    """Redis does not answer, or not as it should; the text says how."""


@dataclass(frozen=True)
class RedisAddress:
    """Where a server is, without anybody's secret."""

    host: str = "localhost"
    port: int = 6379
    path: str = ""
    """Of its Unix socket, where it has one."""
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)
    database: int = 0
    login: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Of whoever serves: user and secret, or a secret alone, only to ask the server whether it works; who has not logged in is not told."""

    @property
    def shown(self) -> str:
        """For logs."""
        return self.path or f"{self.host}:{self.port}"

    async def open(self, user: str, secret: str) -> Stream:
        """A connection on which the user is logged in and the database chosen.

        Raises:
            LoginRefused, RedisAway: see there.
        """
        requests = [make_request(b"AUTH", user.encode(), secret.encode())]
        if self.database:
            requests.append(make_request(b"SELECT", b"%d" % self.database))
        stream = await self._connect()
        try:
            stream.writer.writelines(requests)
            for _ in requests:
                reply = await asyncio.wait_for(stream.reader.readline(), HANDSHAKE_S)
                if reply != b"+OK\r\n":
                    raise _refused(reply)
        except (OSError, TimeoutError, asyncio.TimeoutError) as error:
            stream.close()
            raise RedisAway(f"Redis does not answer ({error or type(error).__name__})") from error
        except (LoginRefused, RedisAway):
            stream.close()
            raise
        return stream

    async def answers(self) -> bool:
        """Whether there is a Redis that works."""
        try:
            stream = await self._connect()
        except RedisAway:
            return False
        try:
            if self.login:
                stream.writer.write(make_request(b"AUTH", *(part.encode() for part in self.login)))
                await asyncio.wait_for(stream.reader.readline(), HANDSHAKE_S / 4)  # a wrong one is told by the next answer
            stream.writer.write(make_request(b"PING"))
            return _ALIVE.match(await asyncio.wait_for(stream.reader.readline(), HANDSHAKE_S / 4)) is not None
        except (OSError, TimeoutError, asyncio.TimeoutError):
            return False
        finally:
            stream.close()

    async def _connect(self) -> Stream:
        if self.path:
            opening = asyncio.open_unix_connection(self.path, limit=MESSAGE_BYTES)
        else:
            opening = asyncio.open_connection(self.host, self.port, ssl=self.tls, limit=MESSAGE_BYTES)
        try:
            reader, writer = await asyncio.wait_for(opening, HANDSHAKE_S)
        except (OSError, TimeoutError, asyncio.TimeoutError) as error:
            raise RedisAway(f"Redis cannot be reached ({error or type(error).__name__})") from error
        writer.transport.set_write_buffer_limits(high=2 * MESSAGE_BYTES)
        return Stream(reader, writer, "Redis", CloseCode.REDIS_GONE)


def redis_address(url: str) -> RedisAddress:
    """The address in a ``redis://``, ``rediss://`` or ``unix://`` URL; its user and secret are for `RedisAddress.login` alone."""
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    login = tuple(unquote(part) for part in (parts.username, parts.password) if part)
    if parts.scheme == "unix":
        return RedisAddress(path=unquote(parts.path), database=int(query.get("db", 0)), login=login)
    database = parts.path.strip("/") or query.get("db", "0")
    tls = _tls_context(query) if parts.scheme == "rediss" else None
    return RedisAddress(parts.hostname or "localhost", parts.port or 6379, tls=tls, database=int(database), login=login)


def _tls_context(query: dict[str, str]) -> ssl.SSLContext:
    """TLS as redis-py understands the URL's ``ssl_`` parameters."""
    context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
    if query.get("ssl_certfile"):
        context.load_cert_chain(query["ssl_certfile"], query.get("ssl_keyfile"))
    required: Literal["none", "optional", "required"] | str = query.get("ssl_cert_reqs", "required")
    if required == "none" or query.get("ssl_check_hostname", "true").lower() in ("false", "0", "no"):
        context.check_hostname = False
    if required == "none":
        context.verify_mode = ssl.CERT_NONE
    return context


def _refused(reply: bytes) -> Exception:
    if _WRONG_LOGIN.match(reply):
        return LoginRefused()
    said = reply.strip().decode(errors="replace") or "it closed the connection"
    return RedisAway(f"Redis says {said!r}")
