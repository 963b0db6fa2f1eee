"""Invited hosts: one user each on both servers, and a record in the state server that their workers cannot read.

A host must have joined before its invitation expires; then its user lasts until it is revoked.  That it has joined is told by a key
which only this host's user may write, so nobody has to watch.  Users of expired invitations are removed by the next `sweep`, which every
reaper does whose connection may change users, and the door and the relay at the moment of the expiry.

Commands may cross.  A record is marked before its user is removed, and a user is made only while an unmarked record is there: in one
transaction with a look at the record on the state server, with a second look on the other one.
"""
from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import redis

from distributed_comfy.access.roles import UserScope
from distributed_comfy.access.token import JoinToken
from distributed_comfy.access.users import ServerUsers, hashed, names_overlap
from distributed_comfy.errors import HostNotInvitable, InviteUnknown
from distributed_comfy.settings import slug
from distributed_comfy.state.connection import HOST_USER
from distributed_comfy.state.hosts import heard_ms
from distributed_comfy.state.keys import Keys

log = logging.getLogger(__name__)

_SECRET_BYTES = 32
_NO_KEY = -2
"""What PTTL answers where there is none."""
_JOINED = re.compile(r"(\d{1,14})\|(\d{1,14})", re.ASCII)
_OF_A_WORKER = ("lease", "starting", "memory", "status", "log")
"""Keys that a host's user writes for its own workers alone, and may have written to last for ever."""


@dataclass(frozen=True)
class Invite:
    """What is known of an invited host."""

    name: str
    created_ms: int
    """Redis time, as all of these."""
    expires_ms: int
    url: str
    """By which it was told to come; no password."""
    secret_hash: str
    revoked: bool = False
    """It is being shut out: its user is made no more, and its name is taken until that is done."""
    joined_ms: int = 0
    """When it came first; 0: not yet."""
    seen_ms: int = 0
    """When it connected last; of `Invites.all` when it, or its agent, was heard of last."""
    connections: int = 0
    """That it has to the state server now."""

    @property
    def user(self) -> str:
        """Its name on both servers."""
        return user_of(self.name)


def user_of(host: str) -> str:
    """Name of an invited host's user."""
    return f"{HOST_USER}{host}"


@dataclass(frozen=True)
class Place:
    """Where a host is told to come."""

    url: str
    blob_url: str = ""
    ca: str = ""
    """See `JoinToken`."""


class Invites:
    """The invited hosts of one cluster.

    Args:
        state: users of the state server.
        blobs: of the blob server; None where both are one.
        prefix: first part of every key.
        database: number in the state server's URL.
        shut: shuts the door that was opened for invited hosts; None where there is none.
    """

    def __init__(
        self, state: ServerUsers, blobs: ServerUsers | None, prefix: str, *, database: int = 0, shut: Callable[[], None] | None = None
    ) -> None:
        self._servers = (state, blobs) if blobs else (state,)
        self._client = state.client
        self._prefix = prefix
        self._keys = Keys(prefix)
        self._database = database
        self._shut = shut

    def check(self) -> None:
        """
        Raises:
            DoorRefused: one of the servers cannot have such users.
        """
        for server in self._servers:
            server.check()

    def check_name(self, name: str) -> None:
        """Whether a host of this name can be invited; raises as `create`."""
        self.sweep()
        if not name or name != slug(name):
            raise HostNotInvitable(name=name, reason=f"a name has only a-z, 0-9, - and _ ({slug(name)!r} would do)")
        for other in self._read():
            if other.name == name:
                reason = f"it was already; to let it in anew, first run `distributed-comfy invite revoke {name}`"
                raise HostNotInvitable(name=name, reason=reason)
            if names_overlap(other.name, name):
                reason = f"names of its workers could not be told from those of host {other.name!r}, which was invited"
                raise HostNotInvitable(name=name, reason=reason)
        for agent in sorted(self._client.smembers(self._keys("hosts")) | {name}):
            if names_overlap(agent, name) and self._client.exists(self._keys("host", agent)):
                raise HostNotInvitable(name=name, reason=f"it could not be told from host {agent!r}, whose agent lives")
        alike = sorted(worker for worker in self._client.smembers(self._keys("workers")) if worker.startswith(f"{name}-"))
        strangers = [worker for worker in alike if self._client.exists(self._keys("lease", worker))]
        if strangers:
            reason = f"worker {strangers[0]} lives and is called like its own would be; of a host that was just revoked it is gone in 10 s"
            raise HostNotInvitable(name=name, reason=reason)

    def create(self, name: str, place: Place, expires_s: float) -> JoinToken:
        """Invite a host.

        Args:
            name: of the host, as `slug` gives.
            place: where it is to come.
            expires_s: within which it must have joined.
        Raises:
            HostNotInvitable: the name, or one that cannot be told from it, was invited already or belongs to workers of another host.
        """
        self.check_name(name)
        secret, now_ms = secrets.token_urlsafe(_SECRET_BYTES), self.now_ms()
        invite = Invite(name, now_ms, now_ms + round(expires_s * 1000), place.url, hashed(secret))
        stored = json.dumps({field: value for field, value in asdict(invite).items() if field not in _LIVE})
        self._client.hset(self._keys("invites"), name, stored)  # first, so that no user stays that nobody knows of
        if not all(self._make_user(server, invite) for server in self._servers):
            raise InviteUnknown(name=name)
        kept = [server.save() for server in self._servers]
        if not all(kept):
            log.warning("users of %s are gone when it restarts; give it an aclfile (docs/join.md)", place.url)
        log.info("host %s is invited as user %s", name, invite.user)
        return JoinToken(name, place.url, place.blob_url, invite.user, secret, invite.expires_ms, self._prefix, place.ca)

    def free_name(self) -> str:
        """A name for a host that was given none."""
        taken = {invite.name for invite in self._read()}
        return next(name for number in range(1, len(taken) + 2) if (name := f"host{number}") not in taken)

    def all(self) -> list[Invite]:
        """Every invited host, oldest first; users that a server has lost are made again."""
        self.sweep()
        connections = self._servers[0].connections()
        found = [replace(invite, connections=connections.get(invite.user, 0), seen_ms=self._seen_ms(invite)) for invite in self._read()]
        self._restore(found)
        return sorted(found, key=lambda invite: (invite.created_ms, invite.name))

    def revoke(self, name: str) -> None:
        """Shut a host out at once: its user goes, its connections end, its workers' items run elsewhere within a lease.

        Raises:
            InviteUnknown: no such host was invited.
        """
        if not self._client.hexists(self._keys("invites"), name):
            raise InviteUnknown(name=name)
        self._remove(name)
        log.info("host %s is shut out", name)

    def sweep(self) -> list[str]:
        """Remove invitations that expired before their host came; their names.  With the last invitation the door is shut."""
        invites = list(self._read())
        waiting = [invite for invite in invites if not invite.joined_ms or invite.joined_ms > invite.expires_ms]
        now_ms = self.now_ms() if waiting else 0
        expired = [invite.name for invite in waiting if invite.expires_ms <= now_ms]
        if expired and len(expired) == len(invites) and self._shut is not None:
            self._shut()  # before they are gone: whoever is killed in between leaves it to the next sweep
        for name in expired:
            log.info("the invitation of host %s expired", name)
            self._remove(name)
        return expired

    def next_expiry_s(self) -> float:
        """How long until an invitation that nobody has used yet expires; infinite where there is none."""
        waiting = [invite.expires_ms for invite in self._read() if not invite.joined_ms]
        return (min(waiting) - self.now_ms()) / 1000 if waiting else float("inf")

    def now_ms(self) -> int:
        """The clock of the state server."""
        seconds, micros = self._client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def _make_user(self, server: ServerUsers, invite: Invite) -> bool:
        """Make the user of a host on one server; False where it was shut out meanwhile."""
        scope = UserScope(self._prefix, invite.name, self._database)

        def make(pipe: Any) -> bool:
            if not self._is_valid(pipe, invite.name):
                return False
            pipe.multi()
            server.put(invite.user, invite.secret_hash, "worker", scope, pipe)
            return True

        if server is self._servers[0]:
            return bool(self._client.transaction(make, self._keys("invites"), value_from_callable=True))
        if self._is_valid(self._client, invite.name):
            server.put(invite.user, invite.secret_hash, "worker", scope)
            if self._is_valid(self._client, invite.name):
                return True
            server.remove(invite.user)
        return False

    def _is_valid(self, client: Any, name: str) -> bool:
        text = client.hget(self._keys("invites"), name)
        return bool(text) and not json.loads(text).get("revoked")

    def _mark(self, name: str) -> None:
        """From here on nobody makes the user of this host."""
        text = self._client.hget(self._keys("invites"), name)
        if text:
            self._client.hset(self._keys("invites"), name, json.dumps({**json.loads(text), "revoked": True}))

    def _remove(self, name: str) -> None:
        self._mark(name)
        for server in self._servers:
            server.remove(user_of(name))
            server.save()
        self._client.srem(self._keys("hosts"), name)
        self._client.delete(*self._records(name))
        self._client.hdel(self._keys("invites"), name)  # last, so that it can be revoked again where a server was away
        self._client.delete(self._keys("joined", name))

    def _records(self, name: str) -> list[str]:
        """What a host has told of itself and its workers, and the orders that it has not taken."""
        workers = f"{self._keys('worker', '*').split('*')[0]}{name}-"
        found = [key for key in self._client.scan_iter(f"{workers}*", count=1000) if key.rpartition(":")[2] in _OF_A_WORKER]
        own = [self._keys(record, name) for record in ("host", "heard", "seal")]
        return [*own, f"{self._prefix}celery:host.{name}", *found]

    def _restore(self, invites: list[Invite]) -> None:
        """A server without a file for its users forgets them when it restarts."""
        for server in self._servers:
            known = server.names()
            for invite in invites:
                if not invite.revoked and invite.user not in known and self._make_user(server, invite):
                    log.info("host %s: its user is made again", invite.name)

    def _read(self) -> Iterator[Invite]:
        stored: dict[str, str] = self._client.hgetall(self._keys("invites"))
        for text in stored.values():
            invite = Invite(**json.loads(text))
            first_ms, last_ms = self._joined(invite)
            yield replace(invite, joined_ms=first_ms, seen_ms=last_ms)

    def _seen_ms(self, invite: Invite) -> int:
        """When its agent was heard of last, or else when it connected; nothing that is said of it lies ahead of the server's clock."""
        pipe = self._client.pipeline(transaction=False)
        pipe.exists(self._keys("host", invite.name))
        pipe.pttl(self._keys("heard", invite.name))
        lives, left_ms = pipe.execute()
        now_ms = self.now_ms()
        heard = heard_ms(left_ms, now_ms) if left_ms != _NO_KEY else 0
        return now_ms if lives else min(now_ms, max(invite.seen_ms, heard))

    def _joined(self, invite: Invite) -> tuple[int, int]:
        """When a host came first and last; what it wrote itself and cannot be read says no more than that it came."""
        try:
            text: Any = self._client.get(self._keys("joined", invite.name))
        except redis.ResponseError:  # no text
            text = ""
        found = _JOINED.fullmatch("0|0" if text is None else text)
        return (int(found[1]), int(found[2])) if found else (invite.created_ms, invite.created_ms)


def invited_names(client: Any, prefix: str) -> set[str]:
    """Names of the invited hosts; none for a user who may not know them."""
    try:
        return set(client.hkeys(Keys(prefix)("invites")))
    except redis.exceptions.NoPermissionError:
        return set()


_LIVE = ("joined_ms", "seen_ms", "connections")
"""Not part of the record."""
