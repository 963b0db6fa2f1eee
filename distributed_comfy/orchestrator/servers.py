"""Which Redis this process uses: the configured one, else that of the joined cluster, else an embedded one of this user or process."""
from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from distributed_comfy.access.join import joined_token, open_joined
from distributed_comfy.errors import ForFirstHost
from distributed_comfy.settings import Settings, redact_url
from distributed_comfy.state.connection import refuse_plaintext
from distributed_comfy.state.door import read_plan
from distributed_comfy.state.embedded import LINGER_S, start_embedded

log = logging.getLogger(__name__)

_LOOPBACK = ("localhost", "127.0.0.1", "::1", None)  # no name is localhost, to redis-py


@dataclass(frozen=True)
class Servers:
    """Where state and blobs lie."""

    redis_url: str
    blob_url: str
    embedded: bool
    """True where this project started the servers itself."""
    folder: Path | None = None
    """Folder of the embedded servers; that of private ones vanishes with them."""
    invited_to: str = ""
    """URL of the cluster that invited this host, whose servers they are; what leads there through a relay ends in a socket of this host."""

    @property
    def local(self) -> bool:
        """Whether they are this host's own: embedded, on loopback, or behind a socket in its file system."""
        parts = urlsplit(self.redis_url)
        return not self.invited_to and (self.embedded or parts.scheme == "unix" or parts.hostname in _LOOPBACK)

    @property
    def one(self) -> bool:
        """Whether the state server has the blobs as well: DC_BLOB_URL is not set, or is the same."""
        return self.blob_url == self.redis_url

    @property
    def shown(self) -> str:
        """For people: no password."""
        if self.invited_to:
            return self.invited_to
        return f"embedded Redis at {redact_url(self.redis_url)}" if self.embedded else redact_url(self.redis_url)


@contextmanager
def cluster_servers(settings: Settings, *, linger_s: float = LINGER_S) -> Iterator[tuple[Settings, Servers]]:
    """The servers of this host's cluster for as long as the context lasts, and the settings as they are there.

    The configured ones; else those of the cluster that this host has joined (`access.join`), whose host name and key prefix hold then;
    else the embedded ones of this user.

    Args:
        settings: of this process.
        linger_s: see `redis_servers`.
    Raises:
        InviteRefused: the joined cluster does not let this host in any more.
        ClusterUnavailable: none is configured or joined and none can be embedded, or the joined one cannot be reached.
        SettingInvalid: a URL leads to another host in the clear.
    """
    token = joined_token(settings)
    if token is None:
        with redis_servers(settings, linger_s=linger_s) as servers:
            yield settings, servers
    else:
        with open_joined(token, settings) as joined:
            yield joined.settings, Servers(joined.redis_url, joined.blob_url, embedded=False, invited_to=token.url)


def refuse_where_joined(settings: Settings, command: str) -> None:
    """For what the user of an invited host may not do.

    Args:
        settings: of this process.
        command: for people.
    Raises:
        ForFirstHost: the cluster of these settings is one that this host has joined.
    """
    token = joined_token(settings)
    if token is not None:
        raise ForFirstHost(command=command, url=token.url, host=token.host)


@contextmanager
def redis_servers(settings: Settings, *, private: bool = False, linger_s: float = LINGER_S) -> Iterator[Servers]:
    """The configured servers, else embedded ones, for as long as the context lasts; whether this host has joined a cluster is not asked.

    Args:
        settings: ``redis_url`` and ``blob_url``; without the first the embedded servers are used.
        private: embedded servers of this process alone, whatever is configured.
        linger_s: how long shared ones that this process starts outlive their last owner, should that be killed.
    Raises:
        NoRedisServer: none is configured and none can be embedded.
        SettingInvalid: a URL leads to another host in the clear.
    """
    if settings.redis_url and not private:
        blob_url = settings.blob_url or settings.redis_url
        refuse_plaintext(settings.redis_url, "DC_REDIS_URL", allowed=settings.allow_plaintext)
        refuse_plaintext(blob_url, "DC_BLOB_URL", allowed=settings.allow_plaintext)
        if not settings.blob_url:
            _advise("DC_BLOB_URL is not set: images travel through the state Redis; a second server without persistence is faster")
        yield Servers(settings.redis_url, blob_url, embedded=False)
        return
    embedded = start_embedded(settings.runtime_folder, private=private, linger_s=linger_s)
    try:
        _renew(embedded.folder)
        yield Servers(embedded.state_url, embedded.blob_url, embedded=True, folder=embedded.folder)
    finally:
        embedded.stop()


@functools.cache
def _advise(text: str) -> None:
    """Once in a process, which may connect again and again."""
    log.info("%s", text)


def _renew(folder: Path) -> None:
    """A year is long for a door, and any command may be the one that renews its certificate."""
    if read_plan(folder) is None:
        return
    from distributed_comfy.access.doors import renew_door  # brings a library for certificates, which most commands can do without

    try:
        renew_door(folder)
    except OSError as error:
        log.warning("the certificate of the door cannot be renewed: %s", error)
