"""Health check of a worker container: every worker of it is registered and its lease runs.  Exit status 1 with one line otherwise.

What counts is the table in Redis, as everybody else sees the worker: a process that hangs, whose engine is down or that lost its
connection loses its lease within ``DC_LEASE_TTL_S``.
"""
from __future__ import annotations

import sys

import redis
from worker_names import read_names

from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.settings import Settings, read_settings
from distributed_comfy.state.connection import connect
from distributed_comfy.state.keys import Keys

_SOCKET_TIMEOUT_S = 3.0


def missing_workers(settings: Settings, names: list[str]) -> list[str]:
    """Those of ``names`` that the table does not know as alive.

    Raises:
        ClusterUnavailable, redis.RedisError: no Redis.
    """
    keys = Keys(settings.key_prefix)
    client = connect(settings.redis_url, "DC_REDIS_URL", decode_responses=True, socket_timeout_s=_SOCKET_TIMEOUT_S)
    try:
        return [name for name in names if not (client.sismember(keys("workers"), name) and client.exists(keys("lease", name)))]
    finally:
        client.close()


def main() -> int:
    """Exit status 0 where all of them live."""
    names = read_names()
    try:
        missing = missing_workers(read_settings(), names)
    except (DistributedComfyError, redis.RedisError) as error:
        sys.stdout.write(f"{error}\n")
        return 1
    if missing or not names:
        sys.stdout.write(f"not registered, or without a lease: {', '.join(missing) or 'all, none was started yet'}\n")
        return 1
    sys.stdout.write(f"alive: {', '.join(names)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
