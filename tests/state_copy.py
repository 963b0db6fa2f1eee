"""A copy of a whole Redis as it is at one moment, to be put back later: what a crash of its host leaves of an append-only file."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis


@dataclass(frozen=True)
class StateCopy:
    """Every key with its value, as Redis itself writes it down, and what was left of its time in ms (0: for ever)."""

    keys: Sequence[tuple[bytes, bytes, int]]

    @classmethod
    def of(cls, client: redis.Redis) -> StateCopy:
        """What the server holds now."""
        with _raw(client) as raw:
            names = sorted(raw.keys())
            pipe = raw.pipeline(transaction=True)
            for name in names:
                pipe.dump(name)
                pipe.pttl(name)
            replies = pipe.execute()
        rows = zip(names, replies[::2], replies[1::2], strict=True)
        return cls([(name, value, max(0, left_ms)) for name, value, left_ms in rows if value is not None])

    def restore(self, client: redis.Redis) -> None:
        """The server holds this again, and nothing else."""
        with _raw(client) as raw:
            pipe = raw.pipeline(transaction=True)
            pipe.flushall()
            for name, value, left_ms in self.keys:
                pipe.restore(name, left_ms, value)
            pipe.execute()


def _raw(client: redis.Redis) -> Any:
    """The same server, in bytes."""
    kept = {name: value for name, value in client.get_connection_kwargs().items() if name in ("host", "port", "db", "username", "password")}
    return redis.Redis(**kept)
