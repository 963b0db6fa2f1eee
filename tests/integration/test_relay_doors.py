"""Who gets in at the relay and who does not, on the wire: secrets, browsers, encryption, guessing; and what a client is told to do."""
from __future__ import annotations

import base64
import os
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from distributed_comfy.errors import (
    DistributedComfyError,
    RelayAbsent,
    RelayForbidden,
    RelayRefused,
    RelayUnreachable,
    RelayWithoutWebSockets,
    SettingInvalid,
)
from distributed_comfy.relay.client import RelayOptions, RelayUrls, relay_urls
from distributed_comfy.relay.requests import make_request
from distributed_comfy.serve.guarded import HEAD_TIMEOUT_S
from distributed_comfy.state.embedded import start_embedded
from tests.command_line import until
from tests.relay_rig import SECRET, USER, ServeProcess, ask, basic, health, make_user, served, upgrade

pytestmark = [pytest.mark.redis, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def urls(cluster_servers: Any) -> dict[str, str]:
    make_user(cluster_servers.state_url, cluster_servers.blob_url)
    make_user(cluster_servers.state_url, cluster_servers.blob_url, user="somebody", secret="known")
    return {"DC_REDIS_URL": cluster_servers.state_url, "DC_BLOB_URL": cluster_servers.blob_url}


@pytest.fixture(scope="module")
def relay(urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with served(tmp_path_factory.mktemp("serve"), **urls) as process:
        yield process


@pytest.fixture
def reached(relay: ServeProcess) -> Iterator[RelayUrls]:
    with relay_urls(relay.join_url, USER, SECRET) as found:
        yield found


def error_of(url: str, user: str = USER, secret: str = SECRET, ca: str = "") -> DistributedComfyError:
    with pytest.raises(DistributedComfyError) as caught, relay_urls(url, user, secret, ca=ca):
        pass
    return caught.value


# -- on the wire ------------------------------------------------------------------------------------------------------------
def test_a_right_secret_is_let_in(relay: ServeProcess) -> None:
    answer = upgrade(relay.port, Authorization=basic())
    assert answer.status == 101


def test_the_secret_may_come_as_a_subprotocol_and_is_not_repeated(relay: ServeProcess) -> None:
    encoded = base64.urlsafe_b64encode(f"{USER}:{SECRET}".encode()).decode().rstrip("=")
    answer = upgrade(relay.port, Sec_WebSocket_Protocol=f"distributed-comfy, basic.{encoded}")
    assert answer.status == 101
    assert answer.headers["Sec-WebSocket-Protocol"] == "distributed-comfy"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 401, id="no secret"),
        pytest.param({"Authorization": basic(secret="wrong")}, 401, id="a wrong secret"),
        pytest.param({"Authorization": basic(user="nobody")}, 401, id="an unknown user"),
        pytest.param({"Authorization": basic(user="default", secret="x")}, 403, id="the default user, who needs no password here"),
        pytest.param({"Authorization": basic(user="somebody", secret="known")}, 403, id="a user who was not invited"),
        pytest.param({"Authorization": "Basic %%%"}, 401, id="no base64"),
        pytest.param({"Authorization": "Bearer abc"}, 401, id="another scheme"),
        pytest.param({"Authorization": basic(), "Origin": "https://evil.example"}, 403, id="a web page"),
        pytest.param({"Authorization": basic(), "Origin": "null"}, 403, id="a file in a browser"),
        pytest.param({"Authorization": basic(), "X_Forwarded_Proto": "http"}, 403, id="a proxy that was spoken to in the clear"),
        pytest.param({"Authorization": basic(), "Upgrade": "", "Connection": ""}, 426, id="a proxy that drops the upgrade"),
    ],
)
def test_others_are_refused_before_the_upgrade(relay: ServeProcess, headers: dict[str, str], status: int) -> None:
    answer = upgrade(relay.port, X_Forwarded_For=f"198.51.100.{abs(hash(str(headers))) % 200}", **headers)
    assert answer.status == status
    assert answer.headers["Distributed-Comfy"]


def test_a_proxy_that_says_that_its_client_came_by_https_is_believed(relay: ServeProcess) -> None:
    assert upgrade(relay.port, Authorization=basic(), X_Forwarded_Proto="https").status == 101


def test_there_is_no_other_database(relay: ServeProcess) -> None:
    assert upgrade(relay.port, path="/distributed/v2/relay/other", Authorization=basic()).status == 404


def test_whoever_guesses_has_to_wait_longer_each_time_and_others_do_not(relay: ServeProcess) -> None:
    def guess(address: str) -> int:
        return upgrade(relay.port, Authorization=basic(secret="guess"), X_Forwarded_For=address).status

    assert [guess("203.0.113.7") for _ in range(5)] == [401] * 5
    answer = upgrade(relay.port, Authorization=basic(), X_Forwarded_For="made-up, 203.0.113.7")
    assert answer.status == 429
    assert int(answer.headers["Retry-After"]) >= 1
    assert guess("203.0.113.8") == 401
    assert guess("no address") == 401
    assert upgrade(relay.port, Authorization=basic()).status == 101


def test_health_tells_strangers_nothing_of_use(relay: ServeProcess, urls: dict[str, str]) -> None:
    found = health(relay.url)
    assert found["service"] == "distributed-comfy" and found["servers"] == {"state": True, "blobs": True}
    assert set(found) == {"service", "version", "servers", "databases"}


def test_a_server_that_is_busy_with_a_script_is_not_called_alive(tmp_path: Path) -> None:
    """It asks who has not logged in for a password, busy or not."""
    with ExitStack() as ending:
        servers = ending.enter_context(start_embedded(tmp_path, private=True))
        relay = ending.enter_context(served(tmp_path, DC_REDIS_URL=servers.state_url, DC_BLOB_URL=servers.blob_url))
        busy, owner = (ending.enter_context(redis.Redis.from_url(servers.state_url, retry=None)) for _ in range(2))
        assert ask(f"{relay.url}/distributed/v2/health").status == 200
        owner.config_set("lua-time-limit", 50)
        loop = threading.Thread(target=_run_for_ever, args=(busy,))
        loop.start()
        try:
            until(lambda: ask(f"{relay.url}/distributed/v2/health").status == 503)
        finally:
            until(lambda: _ends_script(owner))
            loop.join()
        until(lambda: ask(f"{relay.url}/distributed/v2/health").status == 200)


def _run_for_ever(client: Any) -> None:
    with suppress(redis.ResponseError):  # until it is killed
        client.eval("while true do end", 0)


def _ends_script(owner: Any) -> bool:
    try:
        return bool(owner.script_kill())
    except redis.ResponseError:  # not busy yet
        return False


def read_to_the_end(connection: socket.socket) -> None:
    """Until the other end closes it; its own time-out is an error."""
    with suppress(ConnectionResetError):
        while connection.recv(4096):
            pass


def test_half_a_request_is_not_waited_for(relay: ServeProcess) -> None:
    head = b"GET /distributed/v2/health HTTP/1.1\r\nHost: x\r\n"
    with relay_urls(relay.join_url, USER, SECRET) as found, redis.Redis.from_url(found.redis_url) as client, ExitStack() as ending:
        assert client.ping()
        for half in (b"", head + b"X-Slow: ", head + b"\r\nGET /di"):
            slow = ending.enter_context(socket.create_connection(("127.0.0.1", relay.port), timeout=3 * HEAD_TIMEOUT_S))
            slow.sendall(half)
            ending.callback(read_to_the_end, slow)
        ending.close()
        time.sleep(1)
        assert client.connection_pool.get_connection().is_connected, "whoever is in may be silent"
        assert client.ping()


def test_crowds_that_say_nothing_do_not_silence_the_health(urls: dict[str, str], tmp_path: Path) -> None:
    """From another address than loopback, where a proxy may stand for many."""
    address = own_address()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as crowd:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            relay = crowd.enter_context(served(tmp_path, "--host", "0.0.0.0", **urls))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(400):
            silent = crowd.enter_context(socket.create_connection((address, relay.port), timeout=30))
            silent.sendall(b"GET / HTTP/1.1\r\n")
        assert health(f"http://{address}:{relay.port}")["servers"] == {"state": True, "blobs": True}


def test_plain_connections_of_other_hosts_need_an_explicit_word(urls: dict[str, str], tmp_path: Path) -> None:
    address = own_address()
    with served(tmp_path, "--host", "0.0.0.0", **urls) as strict:
        refused = ask(f"http://{address}:{strict.port}/distributed/v2/relay/state", Authorization=basic())
        assert refused.status == 403 and "not encrypted" in refused.headers["Distributed-Comfy-Reason"]
        assert "logins are refused unless a proxy" in strict.log()
    with served(tmp_path, "--host", "0.0.0.0", "--allow-plain", **urls) as trusting:
        assert upgrade_at(address, trusting.port) == 101


def upgrade_at(address: str, port: int) -> int:
    """The answer to a client that is not on loopback."""
    plain = RelayOptions(allow_plain=True)
    with relay_urls(f"ws://{address}:{port}", USER, SECRET, options=plain) as found, redis.Redis.from_url(found.redis_url) as client:
        return 101 if client.ping() else 0


def own_address() -> str:
    """An address of this host that is not loopback; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("needs an address beside loopback")
        return str(probe.getsockname()[0])


# -- through the forwarder --------------------------------------------------------------------------------------------------
def test_the_doors_on_the_worker_are_closed_to_others(reached: RelayUrls) -> None:
    path = Path(reached.redis_url.partition("@")[2].partition("?")[0])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("unix", [True, False])
def test_the_doors_ask_for_the_secret_before_anything_is_sent(relay: ServeProcess, unix: bool) -> None:
    with relay_urls(relay.join_url, USER, SECRET, options=RelayOptions(unix=unix)) as found:
        place = found.redis_url.partition("@")[2]
        scheme = "unix://" if unix else "redis://"
        before = relay.log().count("connection opened")
        for login in ("", f"{USER}:wrong@", "default:x@"):
            with redis.Redis.from_url(f"{scheme}{login}{place}") as client, pytest.raises(redis.AuthenticationError):
                client.ping()
        assert relay.log().count("connection opened") == before
        with redis.Redis.from_url(found.redis_url) as client:
            assert client.ping()


@pytest.mark.parametrize("unix", [True, False])
def test_a_forwarder_that_is_killed_comes_back_at_the_same_doors(relay: ServeProcess, unix: bool) -> None:
    options = RelayOptions(unix=unix)
    with relay_urls(relay.join_url, USER, SECRET, options=options) as found, redis.Redis.from_url(found.redis_url, retry=None) as client:
        assert client.ping()
        (forwarder,) = [child for child in psutil.Process().children() if "relay.process" in " ".join(child.cmdline())]
        forwarder.kill()
        forwarder.wait(20)
        assert until(lambda: _ping(client))
        assert client.smembers("dc:workers") == set()


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_versions_of_the_protocol_pass(reached: RelayUrls, protocol: int) -> None:
    with redis.Redis.from_url(reached.redis_url, protocol=protocol) as client:
        assert client.hgetall("dc:sigs") == {}
        assert client.execute_command("AUTH", USER, SECRET) in (True, b"OK")


def test_refused_requests_are_answered_in_their_place(reached: RelayUrls) -> None:
    with redis.Redis.from_url(reached.redis_url) as client:
        pipe = client.pipeline(transaction=False)
        pipe.smembers("dc:workers").get("secret").ping().flushall().hgetall("dc:sigs")
        workers, secret, pong, flushed, sigs = pipe.execute(raise_on_error=False)
        assert (workers, pong, sigs) == (set(), True, {})
        for error in (secret, flushed):
            assert isinstance(error, redis.exceptions.NoPermissionError) and "relay: " in str(error)


def test_a_refused_request_in_a_transaction_aborts_it(reached: RelayUrls, urls: dict[str, str]) -> None:
    key = "dc:hosts"
    with redis.Redis.from_url(reached.redis_url) as client, redis.Redis.from_url(urls["DC_REDIS_URL"]) as beside:
        pipe = client.pipeline(transaction=True)
        pipe.sadd(key, "pc1").set("dc:secret", "1")
        with pytest.raises(redis.exceptions.NoPermissionError, match="relay: SET"):
            pipe.execute()
        assert not beside.exists(key, "dc:secret")
        assert client.ping()


def test_a_subscriber_is_answered_too(reached: RelayUrls, urls: dict[str, str]) -> None:
    with redis.Redis.from_url(reached.redis_url) as client, redis.Redis.from_url(urls["DC_REDIS_URL"]) as beside:
        channel = client.pubsub()
        channel.subscribe("dc:orders:pc1-gpu")
        assert channel.get_message(timeout=5)["type"] == "subscribe"
        channel.subscribe("dc:orders:pc2-gpu")
        with pytest.raises(redis.exceptions.NoPermissionError):
            until(lambda: channel.get_message(timeout=0.1))
        assert beside.publish("dc:orders:pc1-gpu", "look") == 1
        assert beside.publish("dc:orders:pc2-gpu", "look") == 0
        assert until(lambda: channel.get_message(timeout=0.1))["data"] == b"look"


def test_nobody_logs_in_as_somebody_else(reached: RelayUrls) -> None:
    with redis.Redis.from_url(reached.redis_url) as client:
        for login in (("default", "x"), ("somebody", "known"), (USER, "wrong")):
            with pytest.raises(redis.exceptions.NoPermissionError, match="relay"):
                client.execute_command("AUTH", *login)
        assert client.ping()


def test_each_kind_of_refused_request_is_logged_once(reached: RelayUrls, relay: ServeProcess) -> None:
    with redis.Redis.from_url(reached.redis_url) as client:
        for _ in range(5):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command("DEBUG", "SLEEP", "0")
    assert until(lambda: relay.log().count("DEBUG refused")) == 1


def test_nonsense_ends_one_connection_with_a_reason(reached: RelayUrls, relay: ServeProcess) -> None:
    path = reached.redis_url.partition("@")[2].partition("?")[0]
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(path)
        client.sendall(make_request(b"AUTH", USER.encode(), SECRET.encode()))
        assert client.recv(100) == b"+OK\r\n"
        client.sendall(b"PING\r\n")
        assert client.recv(100) == b""
    assert until(lambda: "stands where *<number> should" in relay.log())


def test_a_large_value_passes_both_ways(reached: RelayUrls) -> None:
    value = os.urandom(20 * 2**20 + 7)
    with redis.Redis.from_url(reached.blob_url) as client:
        client.set("dc:blob:large:0", value, ex=60)
        assert client.get("dc:blob:large:0") == value
        client.unlink("dc:blob:large:0")


# -- what a client is told --------------------------------------------------------------------------------------------------
def test_a_wrong_secret_is_told_with_what_to_do(relay: ServeProcess) -> None:
    error = error_of(relay.join_url, secret="wrong")
    assert isinstance(error, RelayRefused) and "ask for a new one" in str(error) and "wrong" not in str(error)


def test_a_user_without_an_invite_is_told_so(relay: ServeProcess) -> None:
    assert isinstance(error_of(relay.join_url, "somebody", "known"), RelayForbidden)


def test_another_path_is_no_relay(relay: ServeProcess) -> None:
    assert isinstance(error_of(f"{relay.join_url}/elsewhere"), RelayAbsent)


def test_no_listener_is_told(relay: ServeProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert isinstance(error_of(f"ws://127.0.0.1:{port}"), RelayUnreachable)


def test_an_unknown_name_is_told(relay: ServeProcess) -> None:
    error = error_of("wss://no-such-host.invalid")
    assert isinstance(error, RelayUnreachable) and "no-such-host.invalid" in str(error)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", RelayAbsent, "200"),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", RelayAbsent, "elsewhere"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", RelayUnreachable, "502"),
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", RelayForbidden, "a proxy before it"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", RelayForbidden, "a proxy before it"),
        (b"HTTP/1.1 426 Upgrade Required\r\nDistributed-Comfy: 1\r\nContent-Length: 0\r\n\r\n", RelayWithoutWebSockets, "docs/relay.md"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", RelayAbsent, "HTTP"),
        (b"", RelayUnreachable, ""),
    ],
)
def test_what_a_proxy_answers_is_told_apart(answer: bytes, kind: type[Exception], words: str) -> None:
    with Answering(answer) as port:
        error = error_of(f"ws://127.0.0.1:{port}")
    assert isinstance(error, kind), error
    assert words in str(error)


def test_what_is_no_address_is_refused_at_once() -> None:
    for url in ("redis://x:1", "wss://", "example.org", "wss://x:port"):
        assert isinstance(error_of(url), SettingInvalid)
    assert isinstance(error_of("wss://x.example", ca="no certificate"), SettingInvalid)


def test_a_secret_is_not_sent_in_the_clear_even_to_be_refused() -> None:
    error = error_of("ws://relay.example:8187")
    assert isinstance(error, SettingInvalid) and "wss://" in str(error)


def test_a_revoked_user_is_out_at_once_and_comes_back_with_a_new_secret_only(
    relay: ServeProcess, urls: dict[str, str]
) -> None:
    servers, user = tuple(urls.values()), "dc-host-leaver"
    make_user(*servers, user=user, secret="first")
    with relay_urls(relay.join_url, user, "first") as found, redis.Redis.from_url(found.redis_url, retry=None) as client:
        channel = client.pubsub()
        channel.subscribe("dc:orders:leaver-gpu")
        assert client.ping() and channel.get_message(timeout=5)
        for url in servers:
            with redis.Redis.from_url(url) as beside:
                beside.execute_command("ACL", "DELUSER", user)
        with pytest.raises(redis.ConnectionError):
            until(lambda: channel.connection.read_response())
        with pytest.raises(redis.AuthenticationError, match="ask for a new one"):
            until(lambda: _ping(client) and None)
        logins = relay.log().count("login of 'dc-host-leaver'")
        for _ in range(20):
            with pytest.raises(redis.AuthenticationError):
                client.ping()
        assert relay.log().count("login of 'dc-host-leaver'") == logins


def _ping(client: Any) -> bool:
    """Once; a connection that has just ended is no answer."""
    try:
        return bool(client.ping())
    except redis.AuthenticationError:
        raise
    except redis.RedisError:
        return False


def test_the_number_of_the_database_is_that_of_the_cluster(urls: dict[str, str], tmp_path: Path) -> None:
    other = {"DC_REDIS_URL": urls["DC_REDIS_URL"].removesuffix("0") + "5", "DC_BLOB_URL": urls["DC_BLOB_URL"]}
    with served(tmp_path, **other) as relay, relay_urls(relay.join_url, USER, SECRET) as found:
        assert found.redis_url.endswith("?db=5") and found.blob_url.endswith("?db=0")
        with redis.Redis.from_url(found.redis_url) as client, redis.Redis.from_url(other["DC_REDIS_URL"]) as beside:
            client.sadd("dc:hosts", "pc1")
            assert beside.smembers("dc:hosts") == {b"pc1"}
            beside.delete("dc:hosts")
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command("SELECT", 0)


class Answering:
    """A server that reads a request and says this, whoever asks."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> int:
        return int(self._listener.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(self._answer)


def test_the_log_has_no_secret(relay: ServeProcess) -> None:
    assert SECRET not in relay.log() and not re.search(r"known|wrong", relay.log().replace("unknown", ""))
