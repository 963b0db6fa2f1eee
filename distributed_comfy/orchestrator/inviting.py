"""Inviting a host: are the servers fit for it, is there a door, who keeps it open; then a user, a record, a token."""
from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from distributed_comfy.access.doors import Door, lan_address, open_door
from distributed_comfy.access.invites import Invites
from distributed_comfy.access.invites import Place as InvitePlace
from distributed_comfy.access.token import JoinToken
from distributed_comfy.access.users import ServerUsers, names_overlap
from distributed_comfy.errors import ClusterUnavailable, DoorRefused, SettingInvalid
from distributed_comfy.orchestrator.doctor.redis_version import check_version, installed_package, read_package
from distributed_comfy.orchestrator.doctor.server_facts import read_facts
from distributed_comfy.orchestrator.servers import Servers, redis_servers, refuse_where_joined
from distributed_comfy.relay.client import RelayOptions, relay_urls
from distributed_comfy.settings import Settings, redact_url
from distributed_comfy.state.connection import connect, refuse_plaintext
from distributed_comfy.state.door import shut_door
from distributed_comfy.state.embedded import has_other_owners

log = logging.getLogger(__name__)

_FAREWELL_S = 4.0
"""Agents and workers ask something of the server every second or so."""


@dataclass(frozen=True)
class InviteOptions:
    """What the caller wants of an invitation; one of ``url`` and ``bind`` is given, or neither."""

    name: str = ""
    """Of the host; empty: one is chosen."""
    url: str = ""
    """By which it reaches the state server, or a relay; empty: the embedded servers' own door."""
    blob_url: str = ""
    """By which it reaches the blob server; empty: the same as ``url``."""
    bind: str = ""
    """Address of this host for the door; empty: that of its default route."""
    port: int | None = None
    """See `access.doors.open_door`."""
    ca_file: Path | None = None
    """Authority of ``url``'s certificate; None: the system's."""
    expires_s: float = 86_400.0
    check: bool = True
    """Whether the way by ``url`` is tried before anybody is told of it; an address that only the other host reaches cannot be."""


@contextmanager
def users_of(settings: Settings) -> Iterator[tuple[list[ServerUsers], int]]:
    """Users of the state server, and of the blob server where that is another one; and the number of the state database.

    Raises:
        ClusterUnavailable: no Redis.
    """
    refuse_where_joined(settings, "distributed-comfy redis acl --apply")
    with redis_servers(settings) as servers, _users(servers) as found:
        yield found


@contextmanager
def invites_of(settings: Settings) -> Iterator[tuple[Invites, Servers]]:
    """The invited hosts of the configured cluster, or of this user's embedded one.

    Raises:
        ClusterUnavailable: no Redis, or one whose users this process may not change.
    """
    refuse_where_joined(settings, "distributed-comfy invite")
    with redis_servers(settings) as servers, invites_at(servers, settings.key_prefix) as invites:
        yield invites, servers


@contextmanager
def invites_at(servers: Servers, prefix: str) -> Iterator[Invites]:
    """The invited hosts of the cluster at these servers.

    Raises:
        ClusterUnavailable: no Redis, or one whose users this process may not change.
    """
    with _users(servers) as (users, database):
        shut = functools.partial(shut_door, servers.folder) if servers.folder else None
        invites = Invites(users[0], users[1] if len(users) > 1 else None, prefix, database=database, shut=shut)
        invites.check()
        yield invites


@contextmanager
def _users(servers: Servers) -> Iterator[tuple[list[ServerUsers], int]]:
    state: Any = connect(servers.redis_url, "DC_REDIS_URL", decode_responses=True)
    blobs: Any = connect(servers.blob_url, "DC_BLOB_URL", decode_responses=True)
    try:
        numbers = tuple(int(client.connection_pool.connection_kwargs.get("db") or 0) for client in (state, blobs))
        if state.info("server")["run_id"] == blobs.info("server")["run_id"]:
            yield [ServerUsers(state, "both", servers.redis_url, tuple(sorted(set(numbers))))], numbers[0]
        else:
            both = ServerUsers(state, "state", servers.redis_url, numbers[:1]), ServerUsers(blobs, "blobs", servers.blob_url, numbers[1:])
            yield list(both), numbers[0]
    finally:
        state.close()
        blobs.close()


def invite(settings: Settings, options: InviteOptions) -> JoinToken:
    """Invite one more host.

    Raises:
        DoorRefused: a server has a known flaw, cannot have users of our kind, or ends with this command.
        HostNotInvitable: see `Invites.create`.
        DoorRefused: the URL does not let the new user in, from here.
        SettingInvalid: an option does not fit the servers.
    """
    with invites_of(settings) as (invites, servers):
        _refuse_flawed(settings, servers)
        name = options.name or invites.free_name()
        if names_overlap(settings.host_name, name):
            raise SettingInvalid(name="--name", reason=f"{name!r} could not be told from this host's own name, {settings.host_name!r}")
        invites.check_name(name)  # before a door is opened for it
        place = _place(settings, options, servers)
        token = invites.create(name, place, options.expires_s)
        if options.url and options.check:
            with ExitStack() as undoing:  # also where somebody does not wait for the end of it
                undoing.callback(invites.revoke, name)
                _try_out(settings, token, options)
                undoing.pop_all()
        return token


def revoke(settings: Settings, name: str) -> None:
    """Shut a host out; when it was the last one, the door of embedded servers is shut, too.

    That happens a few seconds later where the host was connected: it comes back at once, and hears that its user is gone, which a door
    that is shut cannot tell from a cluster that is off.

    Raises:
        InviteUnknown: no such host was invited.
    """
    with invites_of(settings) as (invites, servers):
        connected = any(invite.connections for invite in invites.all() if invite.name == name)
        invites.revoke(name)
        if servers.folder is None or invites.all():
            return
        try:
            if connected:
                time.sleep(_FAREWELL_S)
        finally:
            if not invites.all():
                shut_door(servers.folder)


def _refuse_flawed(settings: Settings, servers: Servers) -> None:
    """A worker's right to run scripts would be a right to take a flawed server over."""
    for what, url, setting in (("state", servers.redis_url, "DC_REDIS_URL"), ("blob", servers.blob_url, "DC_BLOB_URL")):
        client = connect(url, setting)
        try:
            facts = read_facts(client, url)
        finally:
            client.close()
        package = read_package(facts.programs) or (installed_package(facts) if facts.loopback else None)
        finding = check_version(f"{what} Redis", facts, package, accepted=settings.redis_accept, private=False)
        if finding.level == "fail":
            raise DoorRefused(what=f"the {what} Redis at {redact_url(url)}", reason=finding.found, remedy=finding.remedy)
        if finding.level == "warn":
            log.warning("%s: %s; %s", finding.check, finding.found, finding.remedy)


def _place(settings: Settings, options: InviteOptions, servers: Servers) -> InvitePlace:
    """Where the host is told to come; the embedded servers' door is opened for it."""
    if options.url:
        return _given_place(settings, options, servers)
    if servers.folder is None:
        reason = f"the servers are configured ({servers.shown}); say by which rediss:// or wss:// URL the other host reaches them"
        raise SettingInvalid(name="--url", reason=reason)
    if not has_other_owners(servers.folder):
        raise DoorRefused(
            what="the embedded Redis",
            reason="it ends with this command, for nothing else uses it",
            remedy="start `distributed-comfy up` (or a worker) first and leave it running, or set DC_REDIS_URL to a server that stays",
        )
    door: Door = open_door(servers.folder, options.bind or lan_address(), options.port, prefix=settings.key_prefix)
    return InvitePlace(door.url, door.blob_url, door.ca)


def _given_place(settings: Settings, options: InviteOptions, servers: Servers) -> InvitePlace:
    for url, name in ((options.url, "--url"), (options.blob_url, "--blob-url")):
        scheme = urlsplit(url).scheme
        if url and (scheme not in ("rediss", "redis", "wss", "ws") or "@" in url):
            raise SettingInvalid(name=name, reason="must be a rediss:// or wss:// URL without user and password: the token brings them")
        if scheme == "redis":
            refuse_plaintext(url, name, allowed=settings.allow_plaintext)
    relayed = urlsplit(options.url).scheme in ("wss", "ws")
    if not relayed and not options.blob_url and servers.redis_url != servers.blob_url:
        raise SettingInvalid(name="--blob-url", reason="the blob server is another one; say by which URL the other host reaches it")
    ca = options.ca_file.read_text(encoding="utf-8") if options.ca_file else ""
    return InvitePlace(options.url, options.blob_url or ("" if relayed else options.url), ca)


def _try_out(settings: Settings, token: JoinToken, options: InviteOptions) -> None:
    """The new user must get in by the URLs of its token, and read something there.

    Raises:
        DoorRefused: it does not, from here at least.
    """
    relayed = urlsplit(token.url).scheme in ("wss", "ws")
    remedy = "correct the URL (and --ca FILE, where an authority of your own signed its certificate)"
    if relayed:
        remedy = f"start `distributed-comfy serve` and the proxy before it, or {remedy}"
    remedy += "; --no-check invites all the same, where only the other host reaches that address"
    try:
        with _ways(settings, token, options) as urls:
            for url in urls:
                connect(url, "--url").close()
    except (ClusterUnavailable, SettingInvalid) as error:
        raise DoorRefused(what=token.url, reason=str(error), remedy=remedy) from error


@contextmanager
def _ways(settings: Settings, token: JoinToken, options: InviteOptions) -> Iterator[list[str]]:
    """The URLs by which the invited host will reach the servers, with its user and secret."""
    if urlsplit(token.url).scheme in ("wss", "ws"):
        allowed = RelayOptions(allow_plain=settings.allow_plaintext)
        with relay_urls(token.url, token.user, token.secret, ca=token.ca, options=allowed) as urls:
            yield list(urls)
        return
    trusted = {"ssl_ca_certs": str(options.ca_file)} if options.ca_file else {}
    query = urlencode({"ssl_cert_reqs": "required", "ssl_check_hostname": "true", **trusted}, safe="/")
    different = dict.fromkeys((token.url, token.blob_url))
    yield [f"{token.with_user(url)}?{query}" if url.startswith("rediss:") else token.with_user(url) for url in different]
