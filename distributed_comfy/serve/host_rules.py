"""What passes for the workers of one host: what they were seen to send, with the keys, queues, leases and scripts of that host.

Made from a record of all requests of real workers (start, jobs with and without errors, remote control, ends); a test keeps it complete.
Kombu's keys: a queue has a list for each of four priorities, the last three with a suffix; a *box* is a worker's queue for remote control.

Wider than the host itself, each for a reason:

- Jobs, items, prompts and feeds are read by whoever runs them, and which these are is decided by the table, not here.
- Tickets may be put into every worker's queue: a script says whom to call, and the caller sends the tickets.
- Every worker is the reaper at times.  It removes queues of workers that are gone; a ticket that is lost so costs one tick of the reaper.
"""
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from distributed_comfy import __version__
from distributed_comfy.relay.rules import Form, FormJudge, connection_forms, form, gather
from distributed_comfy.relay.wire import Database
from distributed_comfy.state.connection import HOST_USER
from distributed_comfy.state.keys import Keys
from distributed_comfy.state.scripts import script_source
from distributed_comfy.transport.blobs import BlobKeys
from tasks.broker_scripts import REFRESH_SCRIPT, SWEEP_SCRIPT

OF_WORKER = ("claim", "complete", "give_back", "register", "renew", "status", "log")
"""Scripts whose first argument is the worker that calls."""
OF_ALL = ("reap", "serve")
"""Scripts that name no caller: any process may be the reaper or match capabilities."""
STEERS_ITSELF = ("suspend", "leave")
"""Orders of `steer` that a worker gives itself."""

_ONLY_OURS = f" (only the scripts of distributed-comfy {__version__} pass, as this end has them, so a worker needs the same version)"
_HINTS = dict.fromkeys((b"EVAL", b"EVALSHA", b"SCRIPT"), _ONLY_OURS)

_NUMBER = re.compile(rb"\d{1,20}")
_SECONDS = re.compile(rb"\d{1,4}(\.\d{1,6})?")
_NAME = rb"[a-z0-9_-]{1,200}"
_PRIORITY = rb"(\x06\x16[0-9])?"
_ID = rb"[A-Za-z0-9_.-]{1,200}"


def host_of(user: str) -> str:
    """The host whose workers a user is for; empty where it is none of these users."""
    host = user.removeprefix(HOST_USER)
    return host if host != user and re.fullmatch(r"[a-z0-9_-]{1,200}", host) else ""


def host_judge(prefix: str, database: Database, database_number: int, user: str, secret: str) -> FormJudge | None:
    """The judge of a connection of a host's workers; None where ``user`` is not a host's.

    Args:
        prefix: first part of every key.
        database: which of the two servers.
        database_number: the one that `SELECT` may name.
        user: as which Redis knows it.
        secret: with which the connection was opened.
    """
    return judge_of_prefixes((prefix,), database, database_number, user, secret)


def judge_of_prefixes(
    prefixes: Iterable[str], database: Database, database_number: int, user: str, secret: str
) -> FormJudge | None:
    """The same, where it is not known which of some prefixes the host's cluster has; keys of the others are not for its user anyway."""
    host = host_of(user)
    if not host:
        return None
    special = [entry for prefix in prefixes for entry in _special_forms(prefix, database, host)]
    return FormJudge(gather([*connection_forms(user, secret, database_number), *special]), _HINTS)


@lru_cache(maxsize=256)
def _special_forms(prefix: str, database: Database, host: str) -> tuple[tuple[str, Form], ...]:
    return tuple(_blob_forms(prefix) if database == "blobs" else _StateForms(prefix, host).all())


def _blob_forms(prefix: str) -> list[tuple[str, Form]]:
    keys = BlobKeys(prefix)
    blob, job = _like(keys.chunk("*", 0).removesuffix(b"0"), rb".+", rb"\d{1,7}"), _like(keys.job("*"), _ID)
    return [
        ("INFO", form(re.compile(rb"(?i)server|memory"))),
        ("SET", form(blob, open_end=True)),
        *[(name, form(blob)) for name in ("GET", "STRLEN")],
        *[(name, form(blob, each=blob)) for name in ("EXISTS", "UNLINK")],
        *[(name, form(job, open_end=True)) for name in ("SADD", "SREM")],
        ("EXPIRE", form(job, _NUMBER)),
        ("SMEMBERS", form(job)),
    ]


class _StateForms:
    """The forms of the state server for one host."""

    def __init__(self, prefix: str, host: str) -> None:
        self._prefix = prefix
        self._keys = Keys(prefix)
        self._celery = re.escape(f"{prefix}celery:".encode())
        self._host = re.escape(host.encode())
        self._own = self._host + rb"-[a-z0-9_-]{1,200}"

    def all(self) -> list[tuple[str, Form]]:
        """Everything."""
        return [*self._scripts(), *self._table(), *self._tickets(), *self._remote_control(), *self._agent()]

    def _scripts(self) -> list[tuple[str, Form]]:
        own = re.compile(self._own)
        # A worker's lease is what follows a script's own arguments: keys are derived from them, so none are given.
        ours = [(name, form("0", own, open_end=True)) for name in OF_WORKER]
        ours += [(name, form("0", open_end=True)) for name in OF_ALL]
        ours += [("steer", form("0", what, own, open_end=True)) for what in STEERS_ITSELF]
        known = [(script_source(name, self._prefix), arguments) for name, arguments in ours]
        known += [(source, arguments) for source, arguments in self._broker_scripts() if source]
        forms = []
        for source, arguments in known:
            body, digest = source.encode(), hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
            forms += [
                ("EVALSHA", Form((digest.encode(), *arguments.first), open_end=True)),
                ("EVAL", Form((body, *arguments.first), open_end=True)),
                ("SCRIPT", form(re.compile(rb"(?i)LOAD"), body)),
            ]
        return [*forms, ("SCRIPT", form(re.compile(rb"(?i)EXISTS"), each=re.compile(rb"[0-9a-f]{40}")))]

    def _broker_scripts(self) -> list[tuple[str, Form]]:
        deadlines = self._broker(rb"_kombu\.binding_deadlines")
        prefixes = [self._broker(rb"_kombu\.binding" + part) for part in (rb"\.", rb"_permanent\.")]
        return [
            (REFRESH_SCRIPT, form("2", self._bindings(), deadlines, self._bound(), "celery.pidbox", _NUMBER, open_end=True)),
            (SWEEP_SCRIPT, form("1", deadlines, *prefixes, open_end=True)),
        ]

    def _table(self) -> list[tuple[str, Form]]:
        one = [self._of_table(name, _NAME) for name in ("worker", "claims", "lease", "memory")]
        starting, job = self._of_table("starting", self._own), self._of_table("job", _ID)
        parts = [self._of_table(name, _ID) for name in ("prompts", "feeds")]
        heard = re.compile(b"|".join(self._of_table(name, self._own).pattern for name in ("orders", "steering")))
        return [
            ("INFO", form(re.compile(rb"(?i)server"))),
            ("TIME", form()),
            ("HSET", form(self._keys("limits"), "all", _NUMBER)),  # every process says the cap that the blob server's memory gives
            ("SET", form(starting, "1", "NX", "PX", _NUMBER)),
            ("PEXPIRE", form(starting, _NUMBER)),
            *[("DEL", form(key)) for key in (starting, self._of_table("status", self._own))],
            ("SMEMBERS", form(self._keys("workers"))),
            ("HGETALL", form(one[0])),
            ("HVALS", form(one[1])),
            ("HEXISTS", form(self._of_table("claims", self._own), re.compile(_ID))),  # whether an item was taken away, as a message says
            ("PTTL", form(one[2])),
            ("GET", form(one[3])),
            ("HGETALL", form(self._keys("sigs"))),
            ("HKEYS", form(self._keys("caps"))),
            ("HMGET", form(self._keys("caps"), open_end=True)),
            ("HGET", form(job, "record")),
            ("HGETALL", form(job)),
            ("HGETALL", form(self._of_table("error", _ID))),
            *[("HGETALL", form(part)) for part in parts],
            ("HGET", form(parts[1], _NUMBER)),
            ("PUBLISH", form(self._of_table("progress", _ID), _told_by(re.compile(self._own.decode())))),
            *[(name, form(heard, each=heard)) for name in ("SUBSCRIBE", "UNSUBSCRIBE")],
            ("UNSUBSCRIBE", form()),
        ]

    def _tickets(self) -> list[tuple[str, Form]]:
        own = self._broker(rb"gpu\." + self._own + _PRIORITY)
        return [
            ("BRPOP", form(own, each=own, last=_SECONDS)),
            *[(name, form(own)) for name in ("LLEN", "RPOP", "EXISTS")],
            ("LPUSH", form(self._broker(rb"gpu\." + _NAME + _PRIORITY), open_end=True)),
            ("RPUSH", form(own, open_end=True)),
            ("DEL", form(self._broker(rb"gpu\." + _NAME))),
        ]

    def _remote_control(self) -> list[tuple[str, Form]]:
        """A worker hears orders and answers them; it gives none, so nothing goes out on the channel that reaches all workers."""
        box, answers = self._broker(self._box() + _PRIORITY), rb"[0-9a-f-]{36}\.reply\.celery\.pidbox"
        orders, events = self._broker(rb"/\d+\.celery\.pidbox"), self._broker(rb"/\d+\.celeryev/[a-z.-]{1,100}")
        return [
            *[(name, form(box)) for name in ("LLEN", "DEL", "EXISTS")],
            ("PEXPIRE", form(box, _NUMBER)),
            *[(name, form(self._bindings(), self._bound())) for name in ("SADD", "SREM")],
            *[(name, form(orders)) for name in ("PSUBSCRIBE", "PUNSUBSCRIBE", "SUBSCRIBE", "UNSUBSCRIBE")],
            ("PUNSUBSCRIBE", form()),
            ("PUBLISH", form(events, open_end=True)),
            ("SMEMBERS", form(self._broker(rb"_kombu\.binding\.reply\.celery\.pidbox"))),
            ("LPUSH", form(self._broker(answers + _PRIORITY), open_end=True)),
        ]

    def _agent(self) -> list[tuple[str, Form]]:
        """The host's agent: its record, the answers to its orders, and their queue; it gives no orders to others."""
        own = self._broker(rb"host\." + self._host + _PRIORITY)
        record, heard = self._of_table("host", self._host), self._of_table("heard", self._host)
        answer = re.compile(_like_pair(self._keys("answer", "*", "+").encode(), self._host, _ID))
        name, joined, seal = re.compile(self._host), self._of_table("joined", self._host), self._of_table("seal", self._host)
        return [
            *[("SET", form(key, open_end=True)) for key in (record, answer)],
            *[("GET", form(key)) for key in (record, answer)],
            ("PUBLISH", form(answer, open_end=True)),
            ("SET", form(seal, re.compile(rb"[0-9a-f]{32} [0-9a-f]{64}"), "PX", _NUMBER)),
            ("SET", form(heard, re.compile(rb".{1,65536}", re.DOTALL), "PX", _NUMBER)),  # a large one would be for nobody to read
            *[("DEL", form(key)) for key in (record, seal, heard)],
            *[(change, form(self._keys("hosts"), name)) for change in ("SADD", "SREM")],
            ("GET", form(joined)),  # when it came first, and last
            ("SET", form(joined, re.compile(rb"[0-9|]{1,60}"))),
            ("BRPOP", form(own, each=own, last=_SECONDS)),
            ("LLEN", form(own)),
            ("RPUSH", form(own, open_end=True)),
        ]

    def _box(self) -> bytes:
        return self._own + rb"(\.[a-z0-9_-]{1,100})?@" + self._host + rb"\.celery\.pidbox"

    def _bindings(self) -> re.Pattern[bytes]:
        return self._broker(rb"_kombu\.binding(_permanent)?\.celery\.pidbox")

    def _bound(self) -> re.Pattern[bytes]:
        """A member of a set of bindings: routing key and pattern, both empty, and the queue."""
        return re.compile(rb"\x06\x16\x06\x16" + self._box())

    def _broker(self, name: bytes) -> re.Pattern[bytes]:
        return re.compile(self._celery + name)

    def _of_table(self, name: str, part: bytes) -> re.Pattern[bytes]:
        return _like(self._keys(name, "*").encode(), part)


def _told_by(own: re.Pattern[str]) -> Callable[[bytes], bool]:
    """Whether a message about an item names a worker of this host: read as whoever hears it does, or a second name would pass."""

    def is_told_by(message: bytes) -> bool:
        try:
            return own.fullmatch(json.loads(message.decode())["worker"]) is not None
        except (ValueError, TypeError, LookupError, RecursionError):
            return False

    return is_told_by


def _like_pair(key: bytes, first: bytes, second: bytes) -> bytes:
    """The text of a pattern for a key of two ids, ``*`` and ``+``."""
    before, between, after = re.split(rb"[*+]", key)
    return re.escape(before) + first + re.escape(between) + second + re.escape(after)


def _like(key: bytes, *parts: bytes) -> re.Pattern[bytes]:
    """A key whose ``*`` is the first part, followed by any others."""
    before, after = key.split(b"*")
    return re.compile(re.escape(before) + parts[0] + re.escape(after) + b"".join(parts[1:]), re.DOTALL)

