"""What a forwarder is told; apart from `relay.process`, so that who starts one need not load an HTTP client."""
from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Order:
    """What a forwarder is started with."""

    url: str
    user: str
    secret: str
    ca: str = ""
    folder: str = ""
    """For Unix sockets; empty: ports on loopback."""
    ports: tuple[int, ...] = (0, 0)
    """On loopback; 0: a free one."""
    check: bool = True
    """Say what is wrong where the relay cannot be reached; without it the doors are opened all the same."""
    level: int = logging.INFO

    def line(self) -> bytes:
        """As it goes through the pipe."""
        return json.dumps(asdict(self)).encode() + b"\n"
