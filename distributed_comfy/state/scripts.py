"""Runs the transitions of the table: each is one Lua script, atomic and idempotent."""
from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import redis

from distributed_comfy.errors import ClusterUnavailable
from distributed_comfy.state import celery_meta, tallies
from distributed_comfy.state.connection import in_our_words, setting_of
from distributed_comfy.state.keys import Keys

log = logging.getLogger(__name__)

SHARED = ("_index", "_workers", "_ends")
SCRIPTS = (
    "submit", "claim", "complete", "give_back", "register", "renew", "reap", "collect", "steer", "serve", "measure", "live",
    "status", "log",
)  # fmt: skip

SendTickets = Callable[[Sequence[str]], None]
"""Sends one ticket to each named worker; called right after the script that decided so."""

T = TypeVar("T")


@cache
def script_source(name: str, prefix: str) -> str:
    """Lua source of a transition under one key prefix: key functions, shared parts, the script itself."""
    folder = resources.files("distributed_comfy.state") / "scripts"
    parts = [(folder / f"{part}.lua").read_text(encoding="utf-8") for part in (*SHARED, name)]
    return "\n".join((Keys(prefix).lua(), tallies.lua(), f"local REVOKED = [==[{celery_meta.template_cancelled()}]==]", *parts))


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
        return [str(part) for part in self.reply(lambda: self._scripts[name](keys=(), args=args))]

    def run_together(self, calls: Sequence[tuple[str, Sequence[str | int]]]) -> list[list[str]]:
        """Several scripts one after the other, and their answers, in one round trip; errors as `run`."""
        pipe = self.client.pipeline(transaction=False)
        for name, args in calls:
            pipe.evalsha(self._scripts[name].sha, 0, *args)
        try:
            answers = self.reply(pipe.execute)
        except redis.exceptions.NoScriptError:  # `run` gives the server what it has not seen yet; what it had seen bears a second run
            return [self.run(name, *args) for name, args in calls]
        return [[str(part) for part in answer] for answer in answers]

    def reply(self, call: Callable[[], T]) -> T:
        """What ``call`` gets from Redis, with a lost connection in our own words.

        Raises:
            RedisUnreachable: no answer.
            RedisRefusesWrites: it answers, and takes no changes now.
            RedisForbids: this process' user may not do that (`access.roles`).
        """
        try:
            return call()
        except redis.RedisError as error:
            told = in_our_words(error, "the state Redis", setting_of(self.client))
            if told is None:
                raise
            raise told from error

    def transition(self, name: str, *args: str | int) -> str:
        """Runs a script that answers ``{outcome, worker...}``, sends the tickets, gives the outcome."""
        outcome, *workers = self.run(name, *args)
        self.send_tickets(workers)
        return outcome

    def send_tickets(self, workers: Sequence[str]) -> None:
        """One ticket for each name.

        The transition has happened, and its outcome matters more than a ticket: one that cannot be sent is replaced by the reaper.
        """
        if not workers:
            return
        log.debug("tickets to %s", " ".join(workers))
        try:
            self._send_tickets(workers)
        except ClusterUnavailable as error:
            log.warning("tickets to %s were not sent (%s); the reaper sends new ones", " ".join(workers), error)
