"""What a Redis server says about itself, as values; read once, judged elsewhere."""
from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis

from distributed_comfy.orchestrator.doctor.server_program import local_programs

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CLOCK_SAMPLES = 3


@dataclass(frozen=True)
class ServerFacts:
    """One server."""

    product: str
    """``Redis``, ``Valkey``, or what else answers as Redis."""
    version: str
    """The product's own version, ``8.1.9``."""
    programs: tuple[Path, ...]
    """Names of its program's file, likeliest first, where it runs on this host and outside of containers."""
    run_id: str
    role: str
    """``master`` or ``slave``."""
    maxmemory: int
    """Bytes; 0: no limit."""
    maxmemory_policy: str
    appends: bool
    """Whether every change goes to an append-only file."""
    append_error: bool
    """Whether its last write to that file failed."""
    open_to_all: bool
    """Whether it answers without a password."""
    loopback: bool
    """Whether it was reached inside this host."""
    answer_ms: float
    """Fastest of a few round trips."""
    clock_ahead_s: float
    """Its clock less this host's."""


def read_facts(client: redis.Redis, url: str) -> ServerFacts:
    """Ask a server.

    Args:
        client: connected to it.
        url: how it was reached.
    Raises:
        redis.RedisError: it stopped answering, or does not allow this user to ask.
    """
    info: dict[str, Any] = dict(client.info())
    product, version = _product(info)
    loopback = url.startswith("unix:") or (urlsplit(url).hostname or "localhost") in _LOOPBACK
    answer_ms, ahead_s = _clock(client)
    return ServerFacts(
        product=product,
        version=version,
        programs=local_programs(info) if loopback else (),
        run_id=str(info.get("run_id", "")),
        role=str(info.get("role", "master")),
        maxmemory=int(info.get("maxmemory", 0)),
        maxmemory_policy=str(info.get("maxmemory_policy", "unknown")),
        appends=bool(int(info.get("aof_enabled", 0))),
        append_error=str(info.get("aof_last_write_status", "ok")) != "ok",
        open_to_all=_answers_strangers(client),
        loopback=loopback,
        answer_ms=answer_ms,
        clock_ahead_s=ahead_s,
    )


def _product(info: dict[str, Any]) -> tuple[str, str]:
    if "valkey_version" in info:
        return "Valkey", str(info["valkey_version"])
    for field, value in info.items():  # dragonfly_version, kvrocks_version and the like
        if field.endswith("_version") and field not in ("redis_version", "gcc_version"):
            return field.removesuffix("_version").capitalize(), str(value)
    return "Redis", str(info.get("redis_version", "unknown"))


def _answers_strangers(client: redis.Redis) -> bool:
    pool = client.connection_pool
    options = {**pool.connection_kwargs, "username": None, "password": None, "retry": None}
    stranger = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **options))
    try:
        return bool(stranger.ping())
    except redis.RedisError:  # it refuses, as it should
        return False
    finally:
        stranger.connection_pool.disconnect()


def _clock(client: redis.Redis) -> tuple[float, float]:
    """Milliseconds of the fastest of a few round trips, and how far its clock was ahead in that one."""
    best = (float("inf"), 0.0)
    for _ in range(_CLOCK_SAMPLES):
        began, before = time.monotonic(), time.time()
        answer: Any = client.time()
        took_s = time.monotonic() - began
        best = min(best, (took_s * 1000, int(answer[0]) + int(answer[1]) / 1e6 - before - took_s / 2))
    return best
