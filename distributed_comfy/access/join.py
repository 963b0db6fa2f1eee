"""An invited host's way in: from a token to two URLs that work, and the token kept for the next time."""
from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import redis

from distributed_comfy.access.token import JoinToken, read_token
from distributed_comfy.errors import (
    DistributedComfyError,
    InviteRefused,
    JoinedUnreachable,
    RedisForbids,
    RedisRefused,
    RedisUnreachable,
    RelayRefused,
    ServerNotTrusted,
    SettingInvalid,
    TokenUnreadable,
)
from distributed_comfy.relay.client import RelayOptions, relay_urls
from distributed_comfy.settings import Settings, changed
from distributed_comfy.state.connection import connect, in_our_words, is_refusal, refuse_plaintext
from distributed_comfy.state.keys import Keys
from distributed_comfy.state.server_process import write_secret

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Joined:
    """An open way into somebody's cluster, for as long as its context lasts."""

    redis_url: str = field(repr=False)
    """With user and secret: never log it."""
    blob_url: str = field(repr=False)
    host: str
    """This host's name there."""
    settings: Settings
    """Those of this host, with the name, the key prefix and the URLs of the invitation."""


@dataclass(frozen=True)
class WrittenConfiguration:
    """What joining has written into the file of this host's workers, and leaving takes back."""

    file: str
    """Path, absolute."""
    written: bool
    """What ``remote_configuration`` says since."""
    before: bool | None
    """What it said before."""


@contextmanager
def open_join(text: str, settings: Settings, *, keep: bool = True) -> Iterator[Joined]:
    """Enter the cluster of a token.

    Args:
        text: the token.
        settings: of this host.
        keep: keep it for this user as soon as the cluster lets us in (`keep_token`); else that is the caller's affair.
    Raises:
        TokenUnreadable: it is none, or a part of it was changed.
        InviteRefused: it was revoked or has expired.
        ClusterUnavailable: it leads through a relay that cannot be used; see `relay.client.relay_urls`.
        RedisUnreachable: nobody answers there.
        ServerNotTrusted: somebody does, and not with the certificate that the token names.
        SettingInvalid: DC_WORKER_NAME does not begin with the host's name, or the way is in the clear.
    """
    token = read_token(text)
    name = settings.worker_name
    if name and not name.startswith(f"{token.host}-"):
        reason = f"workers of this host must be called {token.host}-something here (it is {name!r})"
        raise SettingInvalid(name="DC_WORKER_NAME", reason=reason)
    try:
        with _way(token, settings) as (redis_url, blob_url):
            _enter(token, redis_url, blob_url, kept=stored_token(settings) == token.text)
            if keep:
                keep_token(token, settings)
            yield _joined(token, settings, redis_url, blob_url)
    finally:
        _drop_unused(token, settings)


def keep_token(token: JoinToken, settings: Settings) -> None:
    """From now on this user's host works for the cluster of a token that has let it in (`stored_token`)."""
    _store(token, settings, written_configuration(settings))
    log.info("joined %s as host %s", token.url, token.host)


@contextmanager
def open_joined(token: JoinToken, settings: Settings) -> Iterator[Joined]:
    """The way into the cluster that this host has joined before, for a command that looks at it; nothing is asked there yet.

    Args:
        token: `joined_token`.
        settings: of this host.
    Raises:
        InviteRefused: the cluster does not let this host in any more, also where that is noticed while the context lasts.
        JoinedUnreachable, ServerNotTrusted: the same, where nobody answers there, or somebody else.
        ClusterUnavailable: it leads through a relay that cannot be used; see `relay.client.relay_urls`.
    """
    try:
        with _way(token, settings) as (redis_url, blob_url):
            yield _joined(token, settings, redis_url, blob_url)
    except (RedisRefused, RedisUnreachable) as error:
        raise _meant(error, token, kept=True) from error


def joined_token(settings: Settings) -> JoinToken | None:
    """The invitation by which commands of this host reach their cluster; None where DC_REDIS_URL says another, or none was accepted.

    Raises:
        TokenUnreadable: what is kept is none, or of a later version.
    """
    text = "" if settings.redis_url else stored_token(settings)
    return read_token(text) if text else None


def stored_token(settings: Settings) -> str:
    """The token that this user's host joined with last; empty where there is none."""
    try:
        return str(json.loads(_file(settings).read_text(encoding="utf-8"))["token"])
    except (OSError, ValueError, TypeError, KeyError):  # a container's user may have no home, or one that it may not read
        return ""


def written_configuration(settings: Settings) -> WrittenConfiguration | None:
    """What joining has written into the file of this host's workers; None where it has not."""
    try:
        return WrittenConfiguration(**json.loads(_file(settings).read_text(encoding="utf-8"))["wrote"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def note_configuration(settings: Settings, wrote: WrittenConfiguration | None) -> None:
    """Note what joining has written; None: what the file says now is this host's own wish.  Nothing where no cluster is joined."""
    text, before = stored_token(settings), written_configuration(settings)
    if not text or wrote == before:
        return
    if wrote is not None and before is not None and before.file == wrote.file:
        wrote = WrittenConfiguration(wrote.file, wrote.written, before.before)  # as it was before the first of several clusters
    _store(read_token(text), settings, wrote)


def forget_token(settings: Settings, *, agent_runs: bool = False) -> str:
    """Leave the cluster that this host has joined: neither `up` nor any other command goes there by itself any more.

    The invitation stays valid until the cluster takes it back.

    Args:
        settings: of this process.
        agent_runs: an agent goes on for that cluster, so it needs the authority's certificate, and removes it at its end.
    Returns:
        What was left, for people; empty where nothing was joined.
    """
    text = stored_token(settings)
    if not text:
        return ""
    _file(settings).unlink(missing_ok=True)
    if not agent_runs:
        for certificate in _authorities(settings).glob("*.pem"):
            certificate.unlink(missing_ok=True)
    try:
        token = read_token(text)
    except TokenUnreadable:
        return "a cluster whose invitation could not be read any more"
    return f"{token.url}, where it was host {token.host}"


def _joined(token: JoinToken, settings: Settings, redis_url: str, blob_url: str) -> Joined:
    mine = changed(settings, redis_url=redis_url, blob_url=blob_url, host=token.host, key_prefix=token.prefix)
    return Joined(redis_url, blob_url, token.host, mine)


def _file(settings: Settings) -> Path:
    return settings.config_folder / "joined.json"


def _authorities(settings: Settings) -> Path:
    return settings.config_folder / "authorities"


def _store(token: JoinToken, settings: Settings, wrote: WrittenConfiguration | None) -> None:
    settings.config_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    noted = {"wrote": asdict(wrote)} if wrote else {}
    write_secret(_file(settings), json.dumps({"host": token.host, "url": token.url, "token": token.text, **noted}))


def _drop_unused(token: JoinToken, settings: Settings) -> None:
    """Remove the certificate of an authority whose cluster has not let us in, or was left in the meantime."""
    text = stored_token(settings)
    with suppress(TokenUnreadable):
        if text and read_token(text).fingerprint == token.fingerprint:
            return
    if token.ca:
        with suppress(OSError):
            (_authorities(settings) / f"{token.fingerprint}.pem").unlink(missing_ok=True)


@contextmanager
def _way(token: JoinToken, settings: Settings) -> Iterator[tuple[str, str]]:
    scheme = token.url.split("://", 1)[0]
    if scheme in ("wss", "ws"):
        options = RelayOptions(allow_plain=settings.allow_plaintext)
        with ExitStack() as ending:
            try:
                urls = ending.enter_context(relay_urls(token.url, token.user, token.secret, ca=token.ca, options=options))
            except RelayRefused as error:
                raise InviteRefused(url=token.url, host=token.host, reason=error.reason) from error
            yield urls
    elif token.blob_url:
        yield _direct(token, token.url, settings), _direct(token, token.blob_url, settings)
    else:
        raise TokenUnreadable(reason="a part of it is missing or changed")


def _direct(token: JoinToken, url: str, settings: Settings) -> str:
    """The URL of a server with all that a client needs to know: user, secret, whose certificate it must have."""
    refuse_plaintext(url, "--join", allowed=settings.allow_plaintext)
    if not url.startswith("rediss://"):
        return token.with_user(url)
    query = {"ssl_cert_reqs": "required", "ssl_check_hostname": "true"}
    if token.ca:
        query["ssl_ca_certs"] = str(_pin(token, settings))
    return f"{token.with_user(url)}?{urlencode(query, safe='/')}"


def _pin(token: JoinToken, settings: Settings) -> Path:
    """The file with the authority's certificate, which clients of Redis and Celery can only read from one."""
    folder = _authorities(settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{token.fingerprint}.pem"
    write_secret(path, token.ca)
    return path


def _enter(token: JoinToken, redis_url: str, blob_url: str, *, kept: bool) -> None:
    """Try both servers, and let the first one know that this host has come.

    Args:
        token: of the cluster.
        redis_url: with user and secret.
        blob_url: the same.
        kept: this host has joined with it before.
    """
    try:
        connect(blob_url, "--join").close()
        client: Any = connect(redis_url, "--join", decode_responses=True)
    except (RedisRefused, RedisUnreachable) as error:
        raise _meant(error, token, kept=kept) from error
    try:
        seconds, micros = client.time()
        now_ms, key = int(seconds) * 1000 + int(micros) // 1000, Keys(token.prefix)("joined", token.host)
        first = str(client.get(key) or now_ms).split("|")[0]
        client.set(key, f"{first}|{now_ms}")
    except redis.RedisError as error:
        ours = in_our_words(error, token.url, "--join")
        if isinstance(ours, RedisForbids):
            reason = f"its user has no place as host {token.host!r} with key prefix {token.prefix!r} there, so a part of it was changed"
            raise TokenUnreadable(reason=reason) from error
        raise ours or error from error
    finally:
        client.close()


def _meant(error: RedisRefused | RedisUnreachable, token: JoinToken, *, kept: bool) -> DistributedComfyError:
    """What a server's answer, or silence, means to whoever has a token for it."""
    if is_refusal(error):
        return InviteRefused(url=token.url, host=token.host, reason=error.reason)
    if isinstance(error, RedisUnreachable) and _is_distrust(error):
        return ServerNotTrusted(url=token.url, host=token.host, reason=error.reason)
    if kept:
        return JoinedUnreachable(url=token.url, host=token.host, reason=error.reason)
    return RedisUnreachable(url=token.url, reason=error.reason, setting="--join")


def _is_distrust(error: BaseException | None) -> bool:
    """Whether a server has shown a certificate that is not the promised one."""
    return error is not None and (isinstance(error, ssl.SSLCertVerificationError) or _is_distrust(error.__cause__ or error.__context__))
