"""What passes for the workers of one host, request by request, and what does not."""
from __future__ import annotations

import hashlib
from typing import Any

import pytest
from redis.lock import Lock

from distributed_comfy.relay.rules import FormJudge
from distributed_comfy.serve.host_rules import OF_ALL, OF_WORKER, host_judge, host_of
from distributed_comfy.state.scripts import SCRIPTS, script_source
from tasks.broker_scripts import REFRESH_SCRIPT, SWEEP_SCRIPT

USER, SECRET = "dc-host-pc1", "s3cret"
BOX = "dc:celery:pc1-cuda0@pc1.celery.pidbox"
BOUND = "\x06\x16\x06\x16pc1-cuda0@pc1.celery.pidbox"


def sha(source: str) -> str:
    return hashlib.sha1(source.encode()).hexdigest()


def script(name: str, prefix: str = "dc:") -> str:
    return script_source(name, prefix)


def judge(database: Any = "state") -> FormJudge:
    found = host_judge("dc:", database, 0, USER, SECRET)
    assert found is not None
    return found


def refusal(request: tuple[Any, ...], database: str = "state") -> str:
    """As the gate asks: as many arguments as the judge wants to see."""
    arguments = [part if isinstance(part, bytes) else str(part).encode() for part in request]
    found = judge(database)
    look = found.look(arguments[0].upper())
    if look is None:
        return "no such request"
    return found.refusal(arguments[: look or len(arguments)])


OWN_WORDS = (
    '{"index": 0, "worker": "pc1-cuda0", "node": "7", "value": 2, "maximum": 9}', '{"worker":"pc1-x","preview":"' + "A" * 3_000_000 + '"}',
    '{"index": 0, "worker": "pc1-cuda0", "waits": "\\u00fc"}',
)  # fmt: skip
WORDS_OF_OTHERS = (
    '{"index": 0, "worker": "pc2-cuda0", "node": "7"}', '{"worker": "pc1-cuda0", "worker": "pc2-cuda0"}', '{"worker": "pc10-cuda0"}',
    '{"worker": "pc1-cuda0", "\\u0077orker": "pc2-cuda0"}', '{"worker": ["pc1-cuda0"]}', '{"mark": "0"}', "{}", "", "5", "[]",
    "[" * 100_000, '{"worker": "pc1-cuda0\\n"}', b'{"worker": "pc1-cuda0"}\xff', '{"worker": "pc2-cuda0"}'.encode("utf-16"),
)  # fmt: skip
PASSES = [
    ("PING",), ("ping",), ("HELLO", "3"), ("HELLO", 3, "AUTH", USER, SECRET), ("HELLO", 2, "auth", USER, SECRET, "SETNAME", "x"),
    ("AUTH", USER, SECRET), ("SELECT", 0), ("CLIENT", "SETINFO", "LIB-NAME", "redis-py"), ("CLIENT", "SETNAME", "w"),
    ("INFO", "server"), ("MULTI",), ("EXEC",), ("DISCARD",),
    *[("EVALSHA", sha(script(name)), 0, "pc1-cuda0", "incarnation", "claim", "job", 3, "x" * 999) for name in OF_WORKER],
    ("EVALSHA", sha(script("claim")), 0, "pc1-x", "i", "c", 1),
    *[("EVALSHA", sha(script(name)), 0, "anything") for name in OF_ALL],
    ("EVALSHA", sha(script("steer")), 0, "leave", "pc1-cuda0", "i"),
    ("EVAL", script("renew"), 0, "pc1-cuda0", "i"),
    ("SCRIPT", "LOAD", script("claim")), ("SCRIPT", "EXISTS", "a" * 40),
    ("SUBSCRIBE", "dc:orders:pc1-cuda0", "dc:steering:pc1-cuda0"), *[("PUBLISH", "dc:progress:abc123", message) for message in OWN_WORDS],
    ("BRPOP", "dc:celery:gpu.pc1-cuda0", "dc:celery:gpu.pc1-cuda0\x06\x163", 1), ("LLEN", "dc:celery:gpu.pc1-cuda0"),
    ("LPUSH", "dc:celery:gpu.pc2-cuda0", "a ticket"), ("RPUSH", "dc:celery:gpu.pc1-cuda0", "its own, given back"),
    ("PSUBSCRIBE", "dc:celery:/0.celery.pidbox"), ("PUBLISH", "dc:celery:/0.celeryev/worker.online", "{}"),
    ("SREM", "dc:celery:_kombu.binding.celery.pidbox", BOUND), ("LLEN", BOX), ("DEL", BOX),
    ("LPUSH", "dc:celery:0a1b2c3d-0000-1111-2222-333344445555.reply.celery.pidbox", "an answer"),
    ("SET", "dc:worker:pc1-cuda0:starting", 1, "NX", "PX", 30000), ("HGETALL", "dc:job:abc:prompts"), ("HGET", "dc:job:abc:feeds", 3),
    ("BRPOP", "dc:celery:host.pc1", 1), ("SET", "dc:host:pc1", "{}", "PX", 6000, "GET"), ("SADD", "dc:hosts", "pc1"),
    ("DEL", "dc:host:pc1"), ("SET", "dc:seal:pc1", f"{'a' * 32} {'b' * 64}", "PX", 6000), ("DEL", "dc:seal:pc1"),
    ("HEXISTS", "dc:worker:pc1-cuda0:claims", "0a1b"),
    ("SET", "dc:host:pc1:answer:0a1b", "{}", "EX", 600), ("PUBLISH", "dc:host:pc1:answer:0a1b", ""), ("GET", "dc:host:pc1:answer:0a1b"),
    ("TIME",),
]  # fmt: skip

REFUSED = [
    *[("PUBLISH", "dc:progress:abc123", message) for message in WORDS_OF_OTHERS],
    ("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("MONITOR",), ("ACL", "LIST"), ("DEBUG", "SLEEP", 1), ("SHUTDOWN",), ("",),
    ("REPLICAOF", "evil", 1), ("MODULE", "LOAD", "x"), ("FUNCTION", "LOAD", "x"), ("FCALL", "x", 0), ("RESET",), ("CLIENT", "KILL", "x"),
    ("CLIENT", "TRACKING", "ON"), ("CLIENT", "LIST"), ("INFO",), ("INFO", "everything"), ("SELECT", 1), ("MIGRATE",), ("SYNC",),
    ("AUTH", "default", ""), ("AUTH", USER, "guess"), ("AUTH", SECRET), ("HELLO", 3, "AUTH", "default", "x"), ("HELLO", 4),
    *[("EVALSHA", sha(script(name)), 0, "pc2-cuda0", "i", "c", "j", 1) for name in OF_WORKER],
    *[("EVALSHA", sha(script(name)), 0, "pc10-cuda0", "i", "c", "j", 1) for name in OF_WORKER],
    ("EVALSHA", sha(script("claim")), 0, "pc1", "i", "c", 1),
    *[("EVALSHA", sha(script(name)), 0, "x", "y") for name in SCRIPTS if name not in (*OF_WORKER, *OF_ALL)],
    ("EVALSHA", sha(script("claim")), 1, "pc1-cuda0", "a key"), ("EVALSHA", sha(script("claim")), 0),
    ("EVALSHA", sha(script("claim", "other:")), 0, "pc1-cuda0"),
    *[("EVALSHA", sha(script("steer")), 0, what, "pc1-cuda0", "") for what in ("cancel", "drain", "priority", "retry")],
    ("EVALSHA", sha(script("steer")), 0, "leave", "pc2-cuda0", "i"),
    ("EVAL", "return redis.call('FLUSHALL')", 0), ("EVAL", script("claim") + " ", 0, "pc1-cuda0"), ("EVAL_RO", "return 1", 0),
    ("SCRIPT", "LOAD", "return 1"), ("SCRIPT", "FLUSH"), ("SCRIPT", "KILL"),
    ("EVALSHA", sha(Lock.LUA_RELEASE_SCRIPT), 1, "dc:celery:unacked_mutex", "t"), ("SET", "dc:celery:unacked_mutex", "a" * 32, "NX"),
    ("HSET", "dc:celery:unacked", "tag", "message"), ("ZADD", "dc:celery:unacked_index", 1, "tag"), ("HGETALL", "dc:celery:unacked"),
    ("HSCAN", "dc:celery:unacked", 0), ("HGET", "dc:celery:unacked", "tag"), ("WATCH", "dc:celery:unacked"),
    ("HEXISTS", "dc:worker:pc2-cuda0:claims", "c"), ("GET", "dc:seal:pc2"), ("SET", "dc:seal:pc2", f"{'a' * 32} {'b' * 64}", "PX", 6000),
    ("GET", "dc:seal:pc1"), ("SET", "dc:seal:pc1", "a short one", "PX", 6000), ("HKEYS", "dc:invites"),
    ("SUBSCRIBE", "dc:orders:pc2-cuda0"), ("SUBSCRIBE", "dc:orders:pc1-cuda0", "dc:orders:pc2-cuda0"), ("PSUBSCRIBE", "*"),
    ("SUBSCRIBE", "dc:orders:pc1-cuda0", "dc:steering:pc2-cuda0"), ("PUBLISH", "dc:steering:pc1-cuda0", "end"),
    ("PUBLISH", "dc:orders:pc2-cuda0", "cancel x"), ("PUBLISH", "dc:celery:/0.celery.pidbox", "shutdown"),
    ("LPUSH", BOX, "{}"), ("LPUSH", "dc:celery:pc2-cuda0@pc2.celery.pidbox", "{}"), ("LPUSH", "dc:celery:host.pc2", "{}"),
    ("LPUSH", "dc:celery:host.pc1", "{}"), ("BRPOP", "dc:celery:gpu.pc2-cuda0", 1), ("BRPOP", "dc:celery:host.pc2", 1),
    ("BRPOP", "dc:celery:gpu.pc1-cuda0", "dc:celery:gpu.pc2-cuda0", 1), ("BRPOP", "dc:celery:gpu.pc1-cuda0"), ("LRANGE", BOX, 0, -1),
    ("RPUSH", "dc:celery:gpu.pc2-cuda0", "x"), ("GET", "dc:job:abc:owner"), ("SET", "dc:job:abc:owner", "me", "NX", "PX", 1),
    ("SET", "dc:worker:pc2-cuda0:starting", 1, "NX", "PX", 1), ("SET", "dc:worker:pc1-cuda0:lease", "x"), ("DEL", "dc:jobs"),
    ("DEL", "dc:celery:gpu.pc2-cuda0", "dc:jobs"), ("HSET", "dc:job:abc", "state", "done"), ("HGETALL", "other:job:abc"),
    ("SREM", "dc:celery:_kombu.binding.celery.pidbox", "\x06\x16\x06\x16pc2-cuda0@pc2.celery.pidbox"), ("SCAN", 0), ("OBJECT", "HELP"),
    ("PING", "\r\n"), ("SET", "dc:host:pc2", "{}", "PX", 6000), ("GET", "dc:host:pc2"), ("SADD", "dc:hosts", "pc2"), ("DEL", "dc:hosts"),
    ("SET", "dc:host:pc2:answer:0a1b", "{}"), ("PUBLISH", "dc:host:pc2:answer:0a1b", ""), ("GET", "dc:host:pc10"), ("SMEMBERS", "dc:hosts"),
]  # fmt: skip

BLOBS_PASS = [
    ("SET", "dc:blob:job:0:claim:value0:12", b"\x00" * 9, "EX", 60), ("GET", "dc:blob:a:0"), ("STRLEN", "dc:blob:a:0"), ("INFO", "memory"),
    ("EXISTS", "dc:blob:a:0", "dc:blob:a:1"), ("UNLINK", "dc:blob:a:0", "dc:blob:b c/d:1"), ("SADD", "dc:blobs:job", "a#1"),
    ("EXPIRE", "dc:blobs:job", 60), ("SMEMBERS", "dc:blobs:job"), ("SREM", "dc:blobs:job", "a#1"),
]  # fmt: skip
BLOBS_REFUSED = [
    ("SET", "dc:jobs", b"x"), ("SET", "other:blob:a:0", b"x"), ("UNLINK", "dc:blob:a:0", "dc:workers"), ("KEYS", "*"),
    ("EVAL", "return 1", 0), ("SCRIPT", "LOAD", script("claim")), ("SUBSCRIBE", "x"), ("BRPOP", "dc:celery:gpu.pc1-cuda0", 1),
    ("GET", "dc:blob:a"), ("DEL", "dc:blob:a:0"),
]  # fmt: skip


def named(request: tuple[Any, ...]) -> str:
    return " ".join(str(part)[:24] for part in request[:5])


@pytest.mark.parametrize("request_", PASSES, ids=named)
def test_what_a_worker_needs_passes(request_: tuple[Any, ...]) -> None:
    assert refusal(request_) == ""


@pytest.mark.parametrize("request_", REFUSED, ids=named)
def test_what_no_worker_needs_does_not_pass(request_: tuple[Any, ...]) -> None:
    assert refusal(request_) != ""


@pytest.mark.parametrize("request_", BLOBS_PASS, ids=named)
def test_blobs_pass(request_: tuple[Any, ...]) -> None:
    assert refusal(request_, "blobs") == ""


@pytest.mark.parametrize("request_", BLOBS_REFUSED, ids=named)
def test_other_keys_of_the_blob_server_do_not_pass(request_: tuple[Any, ...]) -> None:
    assert refusal(request_, "blobs") != ""


@pytest.mark.skipif(not REFRESH_SCRIPT, reason="needs kombu 5.7 or later, which has these scripts")
def test_kombus_scripts_pass_for_the_workers_own_box_alone() -> None:
    bindings, deadlines = "dc:celery:_kombu.binding.celery.pidbox", "dc:celery:_kombu.binding_deadlines"
    prefixes = ("dc:celery:_kombu.binding.", "dc:celery:_kombu.binding_permanent.")
    assert refusal(("EVALSHA", sha(REFRESH_SCRIPT), 2, bindings, deadlines, BOUND, "celery.pidbox", 1000)) == ""
    assert refusal(("EVALSHA", sha(SWEEP_SCRIPT), 1, deadlines, *prefixes, 100)) == ""
    assert refusal(("EVALSHA", sha(SWEEP_SCRIPT), 1, "dc:jobs", *prefixes, 100))
    assert refusal(("EVALSHA", sha(SWEEP_SCRIPT), 1, deadlines, "dc:", "dc:", 100))
    foreign = BOUND.replace("pc1", "pc2")
    assert refusal(("EVALSHA", sha(REFRESH_SCRIPT), 2, bindings, deadlines, foreign, "celery.pidbox", 1000))


def test_a_host_is_told_by_its_users_name_alone() -> None:
    assert host_of("dc-host-pc1") == "pc1"
    for user in ("default", "dc-host-", "dc-host-PC1", "dc-host-a.b", "dc-host-*", "pc1", "dc-master"):
        assert host_of(user) == ""
        assert host_judge("dc:", "state", 0, user, SECRET) is None


def test_a_host_whose_name_has_signs_matches_itself_only() -> None:
    found = host_judge("dc:", "state", 0, "dc-host-a_b-c", SECRET)
    assert found is not None
    assert found.refusal([b"LLEN", b"dc:celery:gpu.a_b-c-cpu"]) == ""
    assert found.refusal([b"LLEN", b"dc:celery:gpu.axb-c-cpu"])
