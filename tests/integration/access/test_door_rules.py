"""What an invited host may send through the door of the embedded servers: no more than through the relay, whatever its user may do."""
from __future__ import annotations

import hashlib
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from distributed_comfy import __version__
from distributed_comfy.access.join import open_join
from distributed_comfy.access.token import JoinToken
from distributed_comfy.orchestrator.inviting import InviteOptions, invite, revoke
from distributed_comfy.relay.requests import LARGEST_ARGUMENT_BYTES, make_request
from distributed_comfy.settings import Settings, read_settings
from distributed_comfy.state.embedded import EmbeddedRedis
from distributed_comfy.state.scripts import script_source

pytestmark = [pytest.mark.redis, pytest.mark.timeout(120)]

ENDLESS = "while true do end"
UNKILLABLE = "redis.call('set', 'dc:worker:pc2-cpu:lease', 'x') while true do end"


@pytest.fixture
def token(settings: Settings, owner: EmbeddedRedis) -> JoinToken:
    """Of host pc2."""
    return invite(settings, InviteOptions(name="pc2", bind="127.0.0.1", port=0))


@pytest.fixture
def host(token: JoinToken) -> Iterator[Any]:
    """A connection of that host to the state server, by its own secret and nothing of ours between."""
    with open_join(token.text, read_settings()) as joined, closing(redis.Redis.from_url(joined.redis_url, decode_responses=True)) as client:
        yield client


@pytest.fixture
def hosts_blobs(token: JoinToken) -> Iterator[Any]:
    """The same to the blob server."""
    with open_join(token.text, read_settings()) as joined, closing(redis.Redis.from_url(joined.blob_url)) as client:
        yield client


def owners(embedded: EmbeddedRedis) -> Any:
    return redis.Redis.from_url(embedded.state_url, decode_responses=True, socket_timeout=3)


@pytest.mark.parametrize("source", [ENDLESS, UNKILLABLE])
def test_a_script_that_never_ends_does_not_reach_the_server(owner: EmbeddedRedis, settings: Settings, host: Any, source: str) -> None:
    digest = hashlib.sha1(source.encode()).hexdigest()
    for request in (("EVAL", source, 0), ("EVALSHA", digest, 0), ("SCRIPT", "LOAD", source), ("FCALL", "x", 0), ("EVAL_RO", source, 0)):
        with pytest.raises(redis.exceptions.NoPermissionError, match="door: "):
            host.execute_command(*request)
    with owners(owner) as client:
        assert client.ping() and client.script_exists(digest) == [False]
    revoke(settings, "pc2")


def test_a_worker_of_another_version_is_told_that_its_scripts_are_others(host: Any) -> None:
    for request in (("EVALSHA", "0" * 40, 0, "pc2-cpu"), ("SCRIPT", "LOAD", "return 1")):
        with pytest.raises(redis.exceptions.NoPermissionError, match=f"{__version__}.*needs the same version"):
            host.execute_command(*request)


def test_the_known_scripts_pass_also_after_the_server_has_forgotten_them(owner: EmbeddedRedis, host: Any) -> None:
    with owners(owner) as client:
        client.script_flush()
    source = script_source("renew", "dc:")
    assert host.script_load(source) == hashlib.sha1(source.encode()).hexdigest()
    assert host.register_script(script_source("log", "dc:"))(args=("pc2-cpu", "b1", 10, 1000, "worker", "INFO", "a line")) == ["ok"]


def test_the_lists_of_the_table_cannot_be_emptied(owner: EmbeddedRedis, host: Any) -> None:
    with owners(owner) as client:
        for key in (f"dc:{name}" for name in ("jobs", "hosts", "ended", "active", "workers", "sigs", "job:0123456789ab")):
            client.set(key, "here")
            script = f"return redis.call('DEL', '{key}')"
            for request in (("DEL", key), ("UNLINK", key), ("SET", key, "x"), ("PEXPIRE", key, 1), ("EVAL", script, 0)):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    host.execute_command(*request)
            assert client.get(key) == "here"


def test_nobody_comes_in_as_another_user_and_sheds_the_rules_so(token: JoinToken, host: Any) -> None:
    for login in (("AUTH", "default", "x"), ("HELLO", 3, "AUTH", "default", "x"), ("RESET",)):
        with pytest.raises(redis.exceptions.NoPermissionError, match="door: "):
            host.execute_command(*login)
    own = (token.user.encode(), token.secret.encode())
    # A first login that fails leaves the connection to whoever logs in then, under the rules of that user; also in one piece.
    with plain_connection(token) as plain:
        plain.sendall(make_request(b"AUTH", b"default", b"wrong") + make_request(b"AUTH", *own) + make_request(b"EVAL", b"return 1", b"0"))
        said = b""
        while said.count(b"\n") < 3:
            said += plain.recv(4096)
        assert re.fullmatch(rb"-WRONGPASS .*\r\n\+OK\r\n-NOPERM door: EVAL .*\r\n", said)


def plain_connection(token: JoinToken) -> ssl.SSLSocket:
    parts = urlsplit(token.url)
    context = ssl.create_default_context(cadata=token.ca)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10)
    return context.wrap_socket(connection, server_hostname=parts.hostname)


def test_a_length_that_is_announced_takes_no_memory(owner: EmbeddedRedis, hosts_blobs: Any) -> None:
    with redis.Redis.from_url(owner.blob_url) as blobs:
        before = blobs.info("memory")["used_memory"]
        held = []
        for number in range(12):
            connection = hosts_blobs.connection_pool.make_connection()
            connection.connect()
            key = b"dc:blob:0123456789ab:x:%d" % number
            connection._sock.sendall(b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$536870912\r\nabc" % (len(key), key))
            held.append(connection)
        time.sleep(0.5)
        assert blobs.info("memory")["used_memory"] - before < 2**24
        assert blobs.set("dc:x", "the owner still writes")
        assert int(blobs.config_get("proto-max-bulk-len")["proto-max-bulk-len"]) == LARGEST_ARGUMENT_BYTES
        for connection in held:
            connection.disconnect()


def test_the_largest_piece_of_a_blob_passes(token: JoinToken) -> None:
    from tasks.cluster import open_cluster

    with open_join(token.text, read_settings(chunk_bytes=64 * 2**20)) as joined:
        cluster = open_cluster(joined.settings, joined.redis_url, joined.blob_url)
        content = bytes(64 * 2**20) + b"more"
        blob = cluster.blobs.put("0123456789ab:0:c:value0", [content], job_id="0123456789ab")
        assert bytes(cluster.blobs.get(blob)) == content
        cluster.close()


def test_a_cluster_with_another_prefix_on_the_same_servers_comes_in_by_the_same_door(settings: Settings, token: JoinToken) -> None:
    other = invite(replace_prefix(settings, "other:"), InviteOptions(name="pc3", bind="127.0.0.1"))
    for each, prefix in ((token, "dc:"), (other, "other:")):
        with open_join(each.text, read_settings()) as joined:
            client: Any = redis.Redis.from_url(joined.redis_url, decode_responses=True)
            assert client.script_load(script_source("renew", prefix))
            assert client.smembers(f"{prefix}workers") == set()
            client.close()


def replace_prefix(settings: Settings, prefix: str) -> Settings:
    return settings.model_copy(update={"key_prefix": prefix})
