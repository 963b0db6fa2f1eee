"""How the servers of a cluster are: of the state server while it is read, of another one for blobs in a thread of its own."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import redis

from distributed_comfy.errors import RedisUnreachable
from distributed_comfy.panel.words import told
from distributed_comfy.state.connection import in_our_words
from tasks.cluster import Cluster

_EVERY_S = 5.0
_SILENT_S = 4.0
"""A server that drops packets answers nothing for much longer than anybody who looks at a page waits."""
_MIB = 2**20
_NAME, _SETTING = "the blob Redis", "DC_BLOB_URL"


@dataclass
class Server:
    """How one server is."""

    up: bool = True
    error: dict[str, Any] | None = None
    version: str = ""
    used_bytes: int | None = None
    limit_bytes: int | None = None
    kept: bool | None = None

    def shown(self) -> dict[str, Any]:
        """As ``ServerHealth`` of openapi.json."""
        return dict(vars(self))


class BlobServer:
    """Looks at a server for blobs that is not the state server; `look` is called by one thread, and never waits.

    Args:
        now: a clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._known = Server()
        self._thread: threading.Thread | None = None
        self._began = 0.0
        self.answered = False
        """Whether it did since `begin`."""

    def begin(self) -> None:
        """Nobody has looked for a while."""
        self.answered = False

    def look(self, cluster: Cluster) -> Server:
        """How it was found last, and to be looked at again where that is due."""
        now, looks = self._now(), self._thread is not None and self._thread.is_alive()
        if looks and now - self._began > _SILENT_S:
            reason = f"it has not answered for {_SILENT_S:g} s"
            self._known = replace(self._known, up=False, error=told(RedisUnreachable(url=_NAME, reason=reason, setting=_SETTING)))
        elif not looks and (self._thread is None or now - self._began >= _EVERY_S):
            self._began = now
            self._thread = threading.Thread(target=self._examine, args=(cluster,), name="panel blobs", daemon=True)
            self._thread.start()
        return self._known

    def _examine(self, cluster: Cluster) -> None:
        found = replace(self._known, up=True, error=None)
        try:
            examine(found, cluster.blob_client)
            self.answered = True
        except redis.RedisError as error:
            found.up, found.error = False, told(in_our_words(error, _NAME, _SETTING) or error)
        except (OSError, ValueError, TypeError) as error:  # the connection was closed, or it is no Redis that answers
            failure = RedisUnreachable(url=_NAME, reason=f"{type(error).__name__}: {error}", setting=_SETTING)
            found.up, found.error = False, told(failure)
        self._known = found


def examine(server: Server, client: redis.Redis) -> None:
    """Ask a server what it says of itself."""
    found: Any = client.info()
    server.version = str(found.get("redis_version", ""))
    server.used_bytes = int(found.get("used_memory", 0)) // _MIB * _MIB
    server.limit_bytes = int(found.get("maxmemory", 0)) or None
    server.kept = bool(int(found.get("aof_enabled", 0)))
