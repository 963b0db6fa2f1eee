"""Runs the transitions of the table: each is one Lua script, atomic and idempotent."""
from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any

import redis

from distributed_comfy.errors import RedisUnreachable
from distributed_comfy.state.keys import Keys

log = logging.getLogger(__name__)

SCRIPTS = ("submit", "claim", "complete", "give_back", "register", "renew", "reap", "collect", "steer", "serve")

SendTickets = Callable[[Sequence[str]], None]
"""Sends one ticket to each named worker; called right after the script that decided so."""


@cache
def script_source(name: str, prefix: str) -> str:
    """Lua source of a transition under one key prefix: key functions, shared part, the script itself."""
    folder = resources.files("distributed_comfy.state") / "scripts"
    common = (folder / "_common.lua").read_text(encoding="utf-8")
    return "\n".join((Keys(prefix).lua(), common, (folder / f"{name}.lua").read_text(encoding="utf-8")))


class Scripts:
    """The scripts of one Redis, and what is done with the tickets they decide on."""

    def __init__(self, client: Any, prefix: str, send_tickets: SendTickets) -> None:
        """
        Args:
            client: `redis.Redis` of the state server with ``decode_responses=True`` (its types cannot say so, hence Any).
            prefix: first part of every key.
            send_tickets: see `SendTickets`.
        """
        self.client = client
        self.keys = Keys(prefix)
        self._send_tickets = send_tickets
        self._scripts = {name: client.register_script(script_source(name, prefix)) for name in SCRIPTS}

    def run(self, name: str, *args: str | int) -> list[str]:
        """The script's answer, all of it.

        Raises:
            RedisUnreachable: no answer; the transition may or may not have happened, and may be repeated.
        """
        try:
            return [str(part) for part in self._scripts[name](keys=(), args=args)]
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise RedisUnreachable(url="the state Redis", reason=str(error), setting="DC_REDIS_URL") from error

    def transition(self, name: str, *args: str | int) -> str:
        """Runs a script that answers ``{outcome, worker...}``, sends the tickets, gives the outcome."""
        outcome, *workers = self.run(name, *args)
        self.send_tickets(workers)
        return outcome

    def send_tickets(self, workers: Sequence[str]) -> None:
        """One ticket for each name."""
        if workers:
            log.debug("tickets to %s", " ".join(workers))
            self._send_tickets(workers)
