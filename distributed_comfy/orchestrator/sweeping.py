"""Whoever may invite and lives for long removes each invitation that nobody used at the moment when it expires."""
from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from distributed_comfy.errors import ClusterUnavailable, DoorRefused
from distributed_comfy.orchestrator.inviting import invites_at
from distributed_comfy.orchestrator.servers import Servers

log = logging.getLogger(__name__)

_INTERVAL_S = 5.0
"""Between two looks at the latest: others invite, too."""
_SHORTEST_S = 0.05
_JOIN_S = 1.0


def sweep_until(stop: threading.Event, servers: Servers, prefix: str) -> None:
    """Sweep until ``stop`` is set; returns at once where this process may not change users of the servers.

    Args:
        stop: ends it.
        servers: of the cluster, with the URLs of their owner.
        prefix: first part of every key.
    """
    while not stop.is_set():
        try:
            with invites_at(servers, prefix) as invites:
                while not stop.is_set():
                    invites.sweep()
                    stop.wait(max(_SHORTEST_S, min(_INTERVAL_S, invites.next_expiry_s())))
        except DoorRefused as refused:
            log.debug("invitations are not looked after by this process: %s", refused)
            return
        except (ClusterUnavailable, redis.RedisError) as error:
            log.warning("cannot look after invitations: %s", error)
            stop.wait(_INTERVAL_S)


@contextmanager
def sweeping(servers: Servers, prefix: str) -> Iterator[None]:
    """The same in a thread, for as long as the context lasts."""
    stop = threading.Event()
    thread = threading.Thread(target=sweep_until, args=(stop, servers, prefix), name="invitations", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_JOIN_S)  # a server that hangs is not waited for
