"""Who may touch which key, channel and command of the two servers: one table for each, from which the rules of Redis users are made.

A worker's user runs the transitions of the table of truth.  Their scripts are no way round the rules: Redis checks every command inside
one against its caller.  So whoever holds a worker's secret can alter the job table, and nothing else here (SECURITY.md).

A new key must be entered in `STATE_KEYS` before it is of use to anybody but the server's owner; a test says so.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from distributed_comfy.state.keys import Keys

Role = Literal["worker", "master", "monitor"]
"""``worker``: takes items. ``master``: submits, collects and steers. ``monitor``: looks (metrics, Flower)."""
ROLES: tuple[Role, ...] = get_args(Role)

Place = Literal["state", "blobs", "both"]
"""Which server the rules are for; ``both``: one server is state and blobs."""

Access = Literal["", "r", "w", "rw"]
"""``w`` alone: add, change and remove, but never learn what is there."""

_JOB_ID = "?" * 12
"""Glob of a job's id; a ``*`` would match all that follows it, too."""


@dataclass(frozen=True)
class Rights:
    """Of each role on one kind of key."""

    worker: Access = ""
    """On the keys of all hosts."""
    master: Access = ""
    monitor: Access = ""
    own: Access = ""
    """What a worker may besides where the key's first id is a worker of its own host, whose name begins with that host's."""
    host: Access = ""
    """What a worker may besides where the key's first id is its own host."""

    def of(self, role: Role) -> Access:
        """On the keys of all hosts."""
        return {"worker": self.worker, "master": self.master, "monitor": self.monitor}[role]


_TABLE = Rights("rw", "rw", "r")
"""The scripts that a worker runs change it."""
_READ = Rights("r", "rw", "r")
_UNTOUCHED = Rights("", "rw", "r")

STATE_KEYS: Mapping[str, Rights] = {
    # Those that a claim touches come first: Redis tries them in this order.
    "job": _TABLE, "item": _TABLE, "worker": _TABLE, "claims": _TABLE, "calls": _TABLE, "called": _TABLE, "work": _TABLE,
    "queue": _TABLE, "heads": _TABLE, "level": _TABLE, "levels": _TABLE, "submitter": _TABLE, "pending": _TABLE, "back": _TABLE,
    "finish": _TABLE, "back_jobs": _TABLE, "back_heads": _TABLE, "finish_jobs": _TABLE, "finish_heads": _TABLE, "idle": _TABLE,
    "runs": _TABLE, "result": _TABLE, "error": _TABLE, "events": Rights("w", "rw", "r"), "tallies": _TABLE, "served": _TABLE,
    "inflight": _TABLE, "unsettled": _TABLE, "unheld": _TABLE, "barred": _TABLE, "sig_barred": _TABLE, "sig_caps": _TABLE,
    "cap_sigs": _TABLE, "cap_workers": _TABLE, "caps": _TABLE, "idle_caps": _TABLE, "sigs": _TABLE, "sig_refs": _TABLE,
    "matched": _TABLE, "capped": _TABLE, "aging": _TABLE, "backoff": _TABLE, "workers": _TABLE, "guests": _TABLE,
    "active": _TABLE, "ended": _TABLE, "jobs": Rights("w", "rw", "r"), "reaper": _TABLE, "reaper_answer": _TABLE, "reaper_facts": _TABLE,
    # What was submitted stays as it is: nobody's worker swaps a prompt for another.
    "spec": _READ, "prompts": _READ, "feeds": _READ, "limits": _READ, "owner": _READ,
    "sequence": _UNTOUCHED,
    # A worker's sign of life is its own.
    "lease": Rights("r", "rw", "r", own="w"),
    "starting": Rights("r", "rw", "r", own="w"),
    "memory": Rights("r", "rw", "r", own="w"),
    "status": Rights("", "rw", "r", own="w"),
    "log": Rights("", "rw", "r", own="rw"),
    # An agent says that its host is there, and answers orders to it.
    "hosts": Rights("rw", "rw", "r"),
    "host": Rights("", "rw", "r", host="rw"),
    "heard": Rights("", "rw", "r", host="rw"),
    "answer": Rights("", "rw", "r", host="rw"),
    "seal": Rights("", "rw", host="w"),  # whoever can read it can give orders to the host
    # Only the owner of the server invites and revokes.
    "invites": Rights(),
    "joined": Rights(host="rw"),
    # Channels.
    "progress": Rights("w", "rw", "r"),
    "statuses": Rights("w", "rw", "r"),
    "orders": Rights("rw", "rw", ""),  # a script that takes an item away tells the worker that has it
    "steering": Rights("r", "rw", ""),
}  # fmt: skip

CHANNELS = frozenset({"progress", "orders", "steering", "statuses"})
"""Which of them are pub/sub channels.  On these ``r`` is to subscribe and ``w`` to publish."""

_ALSO_CHANNELS = {"answer": Rights("w", "rw", "")}
"""Keys of whose name there is a channel, too."""

_EXPIRES = ("spec", "prompts", "feeds")
"""What a worker that ends a job lets expire with it, and may not change otherwise."""

BROKER_KEYS: Mapping[str, Rights] = {
    "gpu.{}": Rights("w", "rw", "", own="rw"),  # a ticket may be sent to anybody, and taken by its worker alone
    "host.{}": Rights("", "rw", host="rw"),  # orders to a host's agent, for it to take
    # Nobody: whoever wrote there could have any consumer put any message into any queue.  Ours use none of them (`tasks.broker`).
    "unacked": Rights(),
    "unacked_index": Rights(),
    "unacked_mutex": Rights(),
    "_kombu.binding.celery.pidbox": Rights("rw", "rw", "rw"),
    "_kombu.binding.reply.celery.pidbox": Rights("rw", "rw", "rw"),
    "_kombu.binding.celeryev": Rights("w", "rw", "rw"),
    "_kombu.binding.{}": Rights("", "rw"),
    "_kombu.binding_permanent.{}": Rights("w", "rw", "rw"),
    "_kombu.binding_deadlines": Rights("rw", "rw", "rw"),
    "{}.reply.celery.pidbox{}": Rights("w", "rw", "rw"),
    "celeryev.{}": Rights("", "rw", "rw"),
    "{}.celery.pidbox{}": Rights("", "rw", "", own="rw"),
}
"""Kombu's, below ``<prefix>celery:``; behind a queue's name it writes the priority, if that is not the first."""

BROKER_CHANNELS: Mapping[str, Rights] = {
    "celery.pidbox": Rights("r", "rw", "rw"),  # remote control: a worker hears it, and cannot send it
    "celeryev/{}": Rights("w", "rw", "r"),  # monitoring events
}
"""Kombu's channels, below ``<prefix>celery:/<database>.``."""

_META = Rights("w", "rw", "r")
"""Celery's records of items, key and channel of one name."""

_BLOB_KEYS: Mapping[str, Rights] = {
    f"blob:{_JOB_ID}:*": Rights("rw", "rw"),  # tensors and files that items give and are fed
    f"blobs:{_JOB_ID}": Rights("rw", "rw"),
    f"blob:{_JOB_ID}/input/*": Rights("r", "rw"),
}

_SCRIPTS = ("eval", "evalsha", "script|load", "script|exists")
_CONNECTION = ("ping", "echo", "info", "time", "client|setname", "client|id", "multi", "exec", "discard", "watch", "unwatch")
_READING = (
    "exists", "get", "hexists", "hget", "hgetall", "hkeys", "hlen", "hmget", "hscan", "hvals", "llen", "lrange", "mget", "pttl", "scard",
    "sismember", "smembers", "sinter", "strlen", "sunion", "ttl", "zcard", "zinter", "zrange", "zrangebyscore", "zrevrange",
    "zrevrangebyscore", "xread", "xrevrange", "zscore",
)  # fmt: skip
_CHANGING = (
    "del", "expire", "hdel", "hincrby", "hset", "hsetnx", "incr", "incrby", "lpop", "lpush", "lrem", "persist", "pexpire", "rpush", "sadd",
    "set", "srem", "sunionstore", "xadd", "zadd", "zincrby", "zrem", "brpop",
)  # fmt: skip
_OWN_QUEUE = ("lpush", "brpop", "sadd", "srem", "zadd", "zrem", "del", "pexpire")
"""What Celery's remote control does with the queue for its answers."""
_HEARING = ("subscribe", "unsubscribe", "psubscribe", "punsubscribe")
_BLOBS = ("set", "get", "strlen", "exists", "unlink", "smembers", "sadd", "srem", "expire")

_STATE_COMMANDS: Mapping[Role, tuple[str, ...]] = {
    "worker": tuple(f"+{name}" for name in (*_CONNECTION, *_SCRIPTS, *_READING, *_CHANGING, "publish", "subscribe", "unsubscribe")),
    "master": ("+@all", "-@admin", "-@dangerous", "-acl", "+info"),
    "monitor": tuple(f"+{name}" for name in (*_CONNECTION, *_SCRIPTS, *_READING, *_HEARING, "publish", *_OWN_QUEUE)),
}
_BLOB_COMMANDS: Mapping[Role, tuple[str, ...]] = {
    "worker": tuple(f"+{name}" for name in (*_CONNECTION, *_BLOBS)),
    "master": ("+@all", "-@admin", "-@dangerous", "-acl", "+info"),
    "monitor": tuple(f"+{name}" for name in _CONNECTION),
}


@dataclass(frozen=True)
class UserScope:
    """What the rules of one user are about."""

    prefix: str
    """First part of every key (``DC_KEY_PREFIX``)."""
    host: str = ""
    """Of a worker's user: the host whose workers it is for; empty: of any host."""
    database: int = 0
    """Number in the state server's URL; Celery's channels contain it."""
    selectable: tuple[int, ...] = ()
    """Numbers of the databases that it may use on the server that the rules are for; none: ``database`` alone."""


def acl_rules(role: Role, place: Place, scope: UserScope) -> list[str]:
    """What follows ``ACL SETUSER name``, without state and password; whatever is not named is refused.

    Args:
        role: of the user.
        place: the server.
        scope: whose keys.
    Returns:
        One rule an element; a selector ``( ... )`` is one, too.
    """
    rules = ["resetkeys", "resetchannels", "clearselectors", "-@all"]
    if role != "master":  # rules know no databases: with another number these keys would be those of another cluster
        rules += [f"+select|{number}" for number in scope.selectable or (scope.database,)]
    if place != "blobs":
        rules += _state_rules(role, scope)
    if place != "state":
        rules += [*_key_rules(scope.prefix, role, _BLOB_KEYS.items(), ""), *_BLOB_COMMANDS[role]]
        if role == "worker":  # whoever drops a job that nobody collects
            rules.append(f"(%W~{scope.prefix}blob:{_JOB_ID}/input/* +unlink)")
    return list(dict.fromkeys(rules))


def _state_rules(role: Role, scope: UserScope) -> list[str]:
    templates, broker = Keys.templates(), f"{scope.prefix}celery:"
    keys = [(templates[name], rights) for name, rights in STATE_KEYS.items() if name not in CHANNELS]
    channels = [(templates[name], rights) for name, rights in STATE_KEYS.items() if name in CHANNELS]
    channels += [(templates[name], rights) for name, rights in _ALSO_CHANNELS.items()]
    topics = [(f"celery:/{scope.database}.{name}", rights) for name, rights in BROKER_CHANNELS.items()]
    rules = [
        *_key_rules(scope.prefix, role, [*keys, ("celery-task-meta-{}", _META)], scope.host),
        *_key_rules(broker, role, BROKER_KEYS.items(), scope.host),
        *_STATE_COMMANDS[role],
        *_channel_rules(scope.prefix, role, [*channels, ("celery-task-meta-{}", _META), *topics]),
    ]
    if role == "worker":
        rules.append(f"({' '.join(f'%W~{_glob(scope.prefix + templates[name])}' for name in _EXPIRES)} +expire)")
    else:  # which hosts were invited, and nothing else of the invitations: `state.hosts` believes those less
        rules.append(f"(%R~{scope.prefix}{templates['invites']} +hkeys)")
    return rules


def _key_rules(prefix: str, role: Role, rights: Iterable[tuple[str, Rights]], host: str) -> list[str]:
    """Key patterns of a role, in the order of the table."""
    rules = []
    for template, rule in rights:
        rules += _patterns(prefix + template, rule.of(role))
        if role == "worker":
            rules += _patterns((prefix + template).replace("{}", f"{host}-*" if host else "*", 1), rule.own)
            for mine in (host, f"{host}[^-a-z0-9_]*") if host else ("*",):  # the second: what Kombu writes behind a queue's name
                rules += _patterns((prefix + template).replace("{}", mine, 1), rule.host)
    return rules


def _patterns(template: str, access: Access) -> list[str]:
    kinds = {"": [], "r": ["%R~"], "w": ["%W~"], "rw": ["~"]}
    return [kind + _glob(template) for kind in kinds[access]]


def _channel_rules(prefix: str, role: Role, rights: Iterable[tuple[str, Rights]]) -> list[str]:
    """Where both is allowed, in the user's own part; else a selector with the commands that are."""
    granted = {access: [f"&{_glob(prefix + name)}" for name, rule in rights if rule.of(role) == access] for access in ("rw", "w", "r")}
    rules = list(granted["rw"])
    if granted["w"]:
        rules.append(f"({' '.join(granted['w'])} +publish)")
    if granted["r"]:  # with all that may be heard, because one command may name several
        rules.append(f"({' '.join([*granted['r'], *granted['rw']])} {' '.join(f'+{name}' for name in _HEARING)})")
    return rules


def _glob(template: str) -> str:
    return template.replace("job:{}", f"job:{_JOB_ID}").replace("{}", "*")
