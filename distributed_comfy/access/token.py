"""What an invited host is given: one line of text with all that it needs to connect, and that nobody else may see.

``dc1.`` and then JSON in URL-safe base64.  The certificate of the authority travels in it (some 550 characters), so a host trusts the
server from its very first connection; its fingerprint is shown at both ends, for whoever wants to compare.
"""
from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import ssl
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from distributed_comfy.errors import TokenUnreadable
from distributed_comfy.state.connection import HOST_USER

_VERSION = 1
_FORM = re.compile(rf"dc{_VERSION}\.([A-Za-z0-9_-]+)")
_LONGEST = 16_384
SCHEMES = ("rediss", "wss", "redis", "ws")
"""Plain ones are for tunnels that encrypt by themselves; `settings.allow_plaintext` must allow them at the host that joins."""


@dataclass(frozen=True)
class JoinToken:
    """An invitation; never log one, nor what `text` gives."""

    host: str
    """Name of the invited host; the names of its workers begin with it and a hyphen."""
    url: str
    """Of the state server, without user and password; or of a relay."""
    blob_url: str
    """Of the blob server; empty where the relay leads to both."""
    user: str
    secret: str = field(repr=False)
    expires_ms: int
    """The host must have joined by then, by the clock of the state server; its user lasts until it is revoked."""
    prefix: str = "dc:"
    """First part of every key of the cluster."""
    ca: str = field(default="", repr=False)
    """Certificate of the authority as PEM; empty where the system's own are to be trusted."""

    @property
    def fingerprint(self) -> str:
        """Of the authority; empty where there is none."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.ca)).hexdigest() if self.ca else ""

    @property
    def text(self) -> str:
        """The token itself, with its secret."""
        content = {**asdict(self), "ca": base64.b64encode(ssl.PEM_cert_to_DER_cert(self.ca)).decode() if self.ca else ""}
        packed = json.dumps({"v": _VERSION, **content}, separators=(",", ":")).encode()
        return f"dc{_VERSION}.{base64.urlsafe_b64encode(packed).decode().rstrip('=')}"

    def with_user(self, url: str) -> str:
        """One of the token's URLs with user and password."""
        scheme, rest = url.split("://", 1)
        return f"{scheme}://{quote(self.user, safe='')}:{quote(self.secret, safe='')}@{rest}"


def read_token(text: str) -> JoinToken:
    """The token in a text.

    Raises:
        TokenUnreadable: it is none, or of a later version, or was changed; the text is not shown.
    """
    text = "".join(text.split())  # a terminal may have broken the line
    match = _FORM.fullmatch(text)
    if match is None:
        later = re.match(r"dc(\d+)\.", text)
        reason = "it is of a later version; upgrade distributed-comfy here" if later and int(later[1]) > _VERSION else "it is none"
        raise TokenUnreadable(reason=reason)
    if len(text) > _LONGEST:
        raise TokenUnreadable(reason="it is too long")
    try:
        content = json.loads(base64.b64decode(match[1] + "=" * (-len(match[1]) % 4), b"-_", validate=True))
        token = _checked(content)
    except (binascii.Error, ValueError, TypeError, KeyError, RecursionError) as error:
        raise TokenUnreadable(reason="a part of it is missing or changed") from error
    _refuse_changed(token)
    return token


def _refuse_changed(token: JoinToken) -> None:
    """
    Raises:
        TokenUnreadable: its parts do not belong together.
    """
    if token.user != f"{HOST_USER}{token.host}":
        raise TokenUnreadable(reason=f"it names host {token.host!r} and user {token.user!r}, which do not belong together: it was changed")
    try:
        if token.ca:
            ssl.create_default_context(cadata=token.ca)
    except (ssl.SSLError, ValueError) as error:
        raise TokenUnreadable(reason="the certificate in it is damaged") from error


def _checked(content: dict[str, Any]) -> JoinToken:
    content = dict(content)
    if content.pop("v") != _VERSION or not all(isinstance(content[name], str) for name in content if name != "expires_ms"):
        raise ValueError("not the content of a token")
    content["ca"] = ssl.DER_cert_to_PEM_cert(base64.b64decode(content["ca"], validate=True)) if content["ca"] else ""
    token = JoinToken(**content)
    urls = [token.url, *([token.blob_url] if token.blob_url else [])]
    if not isinstance(token.expires_ms, int) or any(urlsplit(url).scheme not in SCHEMES or "@" in url for url in urls):
        raise ValueError("not the content of a token")
    if not re.fullmatch(r"[a-z0-9_-]+", token.host) or not re.fullmatch(r"[A-Za-z0-9_.-]+:", token.prefix):
        raise ValueError("not the content of a token")
    return token
