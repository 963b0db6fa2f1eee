"""Connections to Redis, opened one way everywhere and checked before anything is asked of them."""
from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import EqualJitterBackoff
from redis.retry import Retry

from distributed_comfy.errors import (
    ClusterUnavailable,
    DistributedComfyError,
    RedisBusy,
    RedisForbids,
    RedisRefused,
    RedisRefusesWrites,
    RedisTooOld,
    RedisUnreachable,
    SettingInvalid,
)
from distributed_comfy.settings import redact_url

HOST_USER = "dc-host-"
"""First part of the user of an invited host; its name follows."""
INVITATION = "the invitation of this host"
"""In place of a variable, in messages about servers that an invitation leads to."""
OLDEST_SERVER = (6, 2)
"""The scripts and the blob store use commands that came with 6.2; Valkey reports itself as 7.2 or later."""

_FORBIDDEN_IN_SCRIPT = "user executing the script can't"
_UNWRITABLE = (redis.exceptions.OutOfMemoryError, redis.exceptions.ReadOnlyError)
_BUSY = re.compile(r"(^|: )BUSY ")
"""Alone, or behind what redis-py says of a pipeline."""
_RETRIES = 4
_RETRIES_AT_FIRST = 1
"""A server that was never reached is more likely absent than restarting; nobody should wait long to hear it."""
_SOCKET_TIMEOUT_S = 10.0
_SHORTEST_ANSWER_TIMEOUT_S = 2.0
"""Above the second for which a collector lets the server wait for news."""


def answer_timeout_s(lease_ttl_s: float) -> float:
    """Longest wait for an answer of the state server, in seconds.

    A network may drop a connection without a word to either end.  Whoever holds a lease must learn it early enough to renew on another
    connection; scripts bear being sent twice.
    """
    return min(_SOCKET_TIMEOUT_S, max(_SHORTEST_ANSWER_TIMEOUT_S, lease_ttl_s / 3))


def connect(url: str, setting: str, *, decode_responses: bool = False, socket_timeout_s: float = _SOCKET_TIMEOUT_S) -> redis.Redis:
    """Open a client and check the server behind it.

    A command is sent again when its connection breaks, up to four times within 0.8 to 1.6 s, so whatever is sent must bear being
    executed twice.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        setting: the variable the URL came from, for messages.
        decode_responses: replies as text instead of bytes.
        socket_timeout_s: longest wait for one reply; a blocking command must block for less.
    Raises:
        SettingInvalid: the URL is not one.
        RedisUnreachable, RedisRefused, RedisTooOld: see `check_server`.
    """
    tcp = {} if url.startswith("unix:") else {"socket_keepalive": True, "socket_connect_timeout": socket_timeout_s / 2}
    try:
        client = redis.Redis.from_url(
            url,
            decode_responses=decode_responses,
            encoding_errors="replace",  # other hosts write there, too: what is no text must not end who reads it
            protocol=2,  # what the parsers of replies here are written for, whatever redis-py's default becomes
            socket_timeout=socket_timeout_s,
            # No health_check_interval: its PING has retries of its own, inside those of the command (25 tries instead of 5).
            retry=_retry(_RETRIES_AT_FIRST),
            **tcp,
        )
    except ValueError as error:
        raise SettingInvalid(name=setting, reason=f"{error} (it is {redact_url(url)})") from error
    try:
        check_server(client, url, setting)
    except DistributedComfyError:
        client.close()
        raise
    client.set_retry(_retry(_RETRIES))
    return client


def in_our_words(error: redis.RedisError, url: str, setting: str) -> ClusterUnavailable | None:
    """What an error of a server that was reached before means; None where it says nothing about server or user.

    Args:
        error: as redis-py raises it.
        url: what is shown of the server.
        setting: the variable that its URL came from.
    """
    text = str(error)
    if isinstance(error, redis.exceptions.NoPermissionError) or _FORBIDDEN_IN_SCRIPT in text:
        return RedisForbids(url=url, reason=text)
    if isinstance(error, redis.ResponseError) and _BUSY.search(text):
        return RedisBusy(url=url, reason=text)
    if isinstance(error, _UNWRITABLE) or (isinstance(error, redis.ResponseError) and text.startswith(("MISCONF", "OOM", "READONLY"))):
        return RedisRefusesWrites(url=url, reason=text)
    # Also where it does not know the user any more: it may just have started, and is worth another try (`tasks.admission` counts these).
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError)):
        return RedisUnreachable(url=url, reason=text, setting=setting)
    return None


def is_refusal(error: BaseException | None) -> bool:
    """Whether a server answered and did not know the user or its password; of ours and redis-py's errors."""
    return error is not None and (isinstance(error, (RedisRefused, redis.AuthenticationError)) or is_refusal(error.__cause__))


def host_of_url(url: str) -> str:
    """The invited host whose user a server's URL has; empty where it has another user or none."""
    user = unquote(urlsplit(url).username or "")
    return user.removeprefix(HOST_USER) if user.startswith(HOST_USER) else ""


def is_invited(client: Any) -> bool:
    """Whether a client is one of an invited host, which may do less than others."""
    return (client.connection_pool.connection_kwargs.get("username") or "").startswith(HOST_USER)


def setting_of(client: Any) -> str:
    """What leads to the server of a client, for messages: the variable, or an invitation."""
    return INVITATION if is_invited(client) else "DC_REDIS_URL"


def refuse_plaintext(url: str, setting: str, *, allowed: bool) -> None:
    """Refuse a URL by which password, prompts and images would cross a network in the clear.

    Args:
        url: of a server.
        setting: the variable it came from.
        allowed: DC_ALLOW_PLAINTEXT.
    Raises:
        SettingInvalid: it is ``redis://`` to another host.
    """
    parts = urlsplit(url)
    if allowed or parts.scheme != "redis" or is_loopback(parts.hostname or "localhost"):
        return
    reason = (
        f"{redact_url(url)} would send the password and all images in the clear; use a rediss:// URL, join by `distributed-comfy invite`, "
        "or set DC_ALLOW_PLAINTEXT=1 where nobody else is in that network (containers of one host, a VPN)"
    )
    raise SettingInvalid(name=setting, reason=reason)


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this one, without asking anybody."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def check_server(client: redis.Redis, url: str, setting: str) -> None:
    """Ask the server who it is.

    Raises:
        RedisUnreachable: nobody answers, or something that is not Redis, or one that is still loading its data.
        RedisRefused: it does not accept the user or password, or does not allow this user to ask.
        RedisBusy: it runs a script that does not end.
        RedisTooOld: its version is below `OLDEST_SERVER`.
        SettingInvalid: it accepts the user but not the rest of the URL, such as the database number.
    """
    shown = redact_url(url)
    try:
        server: Any = client.info("server")
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise RedisRefused(url=shown, reason=str(error).rstrip("."), setting=setting) from error
    except (redis.ConnectionError, redis.TimeoutError, redis.InvalidResponse) as error:
        raise RedisUnreachable(url=shown, reason=str(error).rstrip(".") or type(error).__name__, setting=setting) from error
    except redis.ResponseError as error:
        if told := in_our_words(error, shown, setting):
            raise told from error
        raise SettingInvalid(name=setting, reason=f"{error} (it is {shown})") from error
    version = str(server.get("redis_version", "unknown"))
    if not is_recent_enough(version):
        raise RedisTooOld(url=shown, version=version, needed=".".join(map(str, OLDEST_SERVER)))


def is_recent_enough(version: str) -> bool:
    """Whether ``version`` (``7.0.15``) is at least `OLDEST_SERVER`; False for what is no version."""
    numbers = version.split(".")[: len(OLDEST_SERVER)]
    return all(number.isdigit() for number in numbers) and tuple(map(int, numbers)) >= OLDEST_SERVER


def _retry(retries: int) -> Retry:
    # Half of each wait is fixed: with all of it random four retries were over in 0.3 s at times, and a finished result was given up.
    return Retry(EqualJitterBackoff(base=0.1, cap=0.5), retries)
