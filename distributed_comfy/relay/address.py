"""The address of a relay as people write it, and what of it is for whom."""
from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from distributed_comfy.errors import SettingInvalid
from distributed_comfy.relay.wire import HEALTH_PATH, RELAY_PATH, Database

_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}


@dataclass(frozen=True)
class RelayAddress:
    """Where a relay is; a path that a proxy gives it stays before ours."""

    base: str
    """``wss://host[:port][/path]``, without a slash at its end."""

    def of(self, database: Database) -> str:
        """The URL of one database's WebSocket."""
        return f"{self.base}{RELAY_PATH}{database}"

    @property
    def health(self) -> str:
        """The URL that tells how the relay is."""
        return f"{self.base.replace('ws', 'http', 1)}{HEALTH_PATH}"

    @property
    def in_the_clear(self) -> bool:
        """Whether the secret would cross a network unencrypted."""
        parts = urlsplit(self.base)
        return parts.scheme == "ws" and not is_loopback(parts.hostname or "")

    def proxy(self) -> str | None:
        """The system's proxy for this address (``HTTPS_PROXY``, ``HTTP_PROXY``, ``NO_PROXY``; on Windows and macOS its settings)."""
        parts = urlsplit(self.base)
        if proxy_bypass(parts.netloc):
            return None
        proxies = getproxies()
        found = proxies.get("https" if parts.scheme == "wss" else "http") or proxies.get("all")
        return found if found is None or "://" in found else f"http://{found}"


def is_loopback(host: str) -> bool:
    """Whether an address, or the name ``localhost``, is this host's own."""
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def relay_address(url: str) -> RelayAddress:
    """The address in a URL.

    Raises:
        SettingInvalid: it is none.
    """
    try:
        parts = urlsplit(url.strip())
        scheme, port = _SCHEMES.get(parts.scheme, ""), parts.port
    except ValueError as error:
        raise SettingInvalid(name="the relay's address", reason=str(error)) from error
    if not scheme or not parts.hostname:
        raise SettingInvalid(name="the relay's address", reason="must be like wss://HOST, wss://HOST:PORT or wss://HOST/PATH")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return RelayAddress(SplitResult(scheme, host + (f":{port}" if port else ""), parts.path.rstrip("/"), "", "").geturl())
