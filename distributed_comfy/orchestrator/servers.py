"""Which Redis this process uses: the configured one, else the embedded one of this user or a private one."""
from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

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
    foreign: bool = False
    """They stand elsewhere, whatever the URLs look like: behind a tunnel that ends on loopback."""

    @property
    def local(self) -> bool:
        """Whether they are this host's own: embedded, on loopback, or behind a socket in its file system."""
        parts = urlsplit(self.redis_url)
        return not self.foreign and (self.embedded or parts.scheme == "unix" or parts.hostname in _LOOPBACK)

    @property
    def shown(self) -> str:
        """For people: no password."""
        return f"embedded Redis at {redact_url(self.redis_url)}" if self.embedded else redact_url(self.redis_url)


@contextmanager
def redis_servers(settings: Settings, *, private: bool = False, linger_s: float = LINGER_S) -> Iterator[Servers]:
    """The servers for as long as the context lasts.

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
            log.info("DC_BLOB_URL is not set: images travel through the state Redis; a second server without persistence is faster")
        yield Servers(settings.redis_url, blob_url, embedded=False)
        return
    embedded = start_embedded(settings.runtime_folder, private=private, linger_s=linger_s)
    try:
        _renew(embedded.folder)
        yield Servers(embedded.state_url, embedded.blob_url, embedded=True, folder=embedded.folder)
    finally:
        embedded.stop()


def _renew(folder: Path) -> None:
    """A year is long for a door, and any command may be the one that renews its certificate."""
    if read_plan(folder) is None:
        return
    from distributed_comfy.access.doors import renew_door  # brings a library for certificates, which most commands can do without

    try:
        renew_door(folder)
    except OSError as error:
        log.warning("the certificate of the door cannot be renewed: %s", error)
