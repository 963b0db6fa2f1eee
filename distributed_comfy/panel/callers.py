"""Who may use the routes of the panel and of the node pack: no page of another site, nobody under a made-up name, else only the token."""
from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from aiohttp import web

from distributed_comfy.panel.peers import may_be_own
from distributed_comfy.panel.token import HEADER, is_token
from distributed_comfy.relay.address import is_loopback

_FORWARDED = (
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server", "X-Real-IP",
    "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Via",
)  # fmt: skip
"""What a proxy or a tunnel adds: its client is not on this host, although it itself may be."""
_USUAL_PORTS = {"http": 80, "https": 443, "": None}


class Refused(Exception):
    """The answer to a caller that may not have what it wants; ``code`` where it is neither its token nor its site."""

    def __init__(self, status: int, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.code = code or ("token_wrong" if status == web.HTTPUnauthorized.status_code else "foreign_origin")
        self.status = status
        self.reason = reason


class Callers:
    """Judges requests.

    Args:
        token: gives the pack's token.
        names: under which this server is reached, beside addresses and names without a dot.
        what: it is, for people.
        shows_token: the command that prints the token, for people.
    """

    def __init__(
        self, token: Callable[[], str], names: Collection[str], *, what: str = "this ComfyUI",
        shows_token: str = "`distributed-comfy comfyui token` prints it",
    ) -> None:  # fmt: skip
        self._token = token
        self._what = what
        self._shows_token = shows_token
        self._names = frozenset(name.strip().lower().rstrip(".") for name in names) | own_names()

    def check_site(self, request: web.Request) -> None:
        """Refuse pages of other sites, and names that lead here by somebody else's DNS (rebinding).

        Raises:
            Refused: 403.
        """
        host = request.headers.get("Host", "")
        name = _host_name(host)
        if not self._is_ours(name):
            known = "DC_COMFYUI_NAMES=" + (name if re.fullmatch(r"[a-z0-9.-]{1,253}", name) else "NAME")
            raise Refused(403, f"{self._what} is not known by the name {name[:100]!r}; where that is right, start it with {known}")
        origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "")
        if (origin is not None and not same_origin(origin, host)) or site in ("cross-site", "same-site"):
            raise Refused(403, "pages of other sites may not use this")

    def check_token(self, request: web.Request) -> None:
        """Refuse whoever does not have the token.

        Raises:
            Refused: 403 as of `check_site`; 401.
        """
        self.check_site(request)
        if not is_token(request.headers.get(HEADER, ""), self._token()):
            raise Refused(401, f"the token is missing or wrong; send it as {HEADER} ({self._shows_token})")

    def check_own_browser(self, request: web.Request) -> None:
        """Refuse all but ComfyUI's own page in a browser on this host: that one gets the token without asking anybody.

        Raises:
            Refused: 403.
        """
        self.check_site(request)
        near = is_loopback(request.remote or "") and is_loopback(_host_name(request.headers.get("Host", "")))
        if not near or not _is_own_user(request) or any(name in request.headers for name in _FORWARDED):
            raise Refused(403, "a browser of another host or user is given the token by hand; `distributed-comfy comfyui token` prints it")
        if "Origin" not in request.headers or request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            raise Refused(403, "only ComfyUI's own page is given the token; `distributed-comfy comfyui token` prints it")

    def _is_ours(self, name: str) -> bool:
        if not name:
            return False
        if _is_address(name) or "." not in name or name.endswith(".localhost"):
            return True  # nobody's DNS decides where these lead
        return name in self._names


def _is_own_user(request: web.Request) -> bool:
    """Other users of this host could behave like the page."""
    if request.transport is None:
        return False
    far, near = (request.transport.get_extra_info(name) for name in ("peername", "sockname"))
    return bool(far and near) and may_be_own((str(far[0]), int(far[1])), (str(near[0]), int(near[1])))


def own_names() -> frozenset[str]:
    """What this host is called, also by its neighbours."""
    name = socket.gethostname().lower()
    return frozenset({name, f"{name.partition('.')[0]}.local"})


def same_origin(origin: str, host: str) -> bool:
    """Whether a page's origin is the address by which it asks; a proxy may have taken TLS off."""
    try:
        page = urlsplit(origin.lower())
        port = page.port or _USUAL_PORTS.get(page.scheme)
        asked = urlsplit(f"//{host.lower()}")
        asked_port = asked.port or _USUAL_PORTS.get(page.scheme)
    except ValueError:
        return False
    return page.scheme in ("http", "https") and bool(page.hostname) and (page.hostname, port) == (asked.hostname, asked_port)


def _host_name(host: str) -> str:
    """The name in a Host header, without port; empty where it is none."""
    try:
        return (urlsplit(f"//{host.lower()}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return False
    return True
