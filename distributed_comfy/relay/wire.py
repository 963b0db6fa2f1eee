"""What both ends of the relay must agree on: paths, headers, sizes, times, and why a WebSocket is closed."""
from __future__ import annotations

from enum import IntEnum
from typing import Literal, get_args

Database = Literal["state", "blobs"]
DATABASES: tuple[Database, ...] = get_args(Database)

HEALTH_PATH = "/distributed/v2/health"
RELAY_PATH = "/distributed/v2/relay/"
"""Followed by a `Database`."""

VERSION_HEADER = "Distributed-Comfy"
"""On every answer of ours, so that a client can tell it from that of a proxy in between."""
REASON_HEADER = "Distributed-Comfy-Reason"
"""Why a connection was refused: the text of a failed handshake does not reach who asked."""
SUBPROTOCOL = "distributed-comfy"

MESSAGE_BYTES = 2**18
"""What one message carries at most."""
MESSAGE_LIMIT_BYTES = 2**20
"""A larger message ends the connection."""

PING_INTERVAL_S = 20.0
"""Proxies end connections on which nothing happens, nginx after 60 s, Cloudflare after 100 s."""
SILENCE_S = 65.0
"""An end that hears nothing for three pings is alone.  Not sooner: on a slow link an answer waits behind megabytes under way."""
HANDSHAKE_S = 10.0


class CloseCode(IntEnum):
    """Why an end closed its WebSocket (RFC 6455, 7.4); the reason comes with it as text."""

    DONE = 1000
    """The program behind it closed its connection."""
    RELAY_ENDS = 1001
    NOT_REDIS = 1002
    """What came is no request of Redis' protocol."""
    REDIS_GONE = 1011
    SILENT = 4408
    """Nothing was heard for `SILENCE_S`."""


def reason_text(reason: str) -> bytes:
    """``reason`` as a close frame can carry it: 123 bytes."""
    return reason.encode()[:123].decode(errors="ignore").encode()
