"""Opening a connection: every way in which it can go wrong has a name, a setting and no password."""
from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from distributed_comfy.errors import DistributedComfyError, RedisRefused, RedisTooOld, RedisUnreachable, SettingInvalid
from distributed_comfy.state.connection import connect

PASSWORD = "hunter2-secret"


def refused_with(expected: type[DistributedComfyError], url: str, setting: str = "DC_BLOB_URL") -> str:
    with pytest.raises(expected) as caught:
        connect(url, setting, socket_timeout_s=1.0)
    assert setting in str(caught.value) or expected is RedisTooOld
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


def with_login(url: str, login: str) -> str:
    return url.replace("redis://", f"redis://{login}@")


@pytest.fixture
def locked_url(redis_url: str) -> Iterator[str]:
    """The state server, for as long as the test asks for a password."""
    client = redis.Redis.from_url(redis_url)
    client.config_set("requirepass", PASSWORD)
    client.execute_command("ACL", "SETUSER", "weak", "on", f">{PASSWORD}", "+ping")
    yield redis_url
    client.config_set("requirepass", "")
    client.execute_command("ACL", "DELUSER", "weak")
    client.close()


def test_a_good_url_gives_a_client_with_replies_as_asked(redis_url: str) -> None:
    with connect(redis_url, "DC_REDIS_URL") as client, connect(redis_url, "DC_REDIS_URL", decode_responses=True) as decoding:
        client.set("a", "b")
        assert (client.get("a"), decoding.get("a")) == (b"b", "b")


def test_the_right_password_is_accepted_and_all_others_are_refused(locked_url: str) -> None:
    connect(with_login(locked_url, f":{PASSWORD}"), "DC_REDIS_URL").close()
    refused_with(RedisRefused, locked_url)
    refused_with(RedisRefused, with_login(locked_url, ":wrong"))
    refused_with(RedisRefused, with_login(locked_url, f"nobody:{PASSWORD}"))
    assert "info" in refused_with(RedisRefused, with_login(locked_url, f"weak:{PASSWORD}"))


def test_a_password_that_nobody_asked_for_is_refused(redis_url: str) -> None:
    assert "without any password configured" in refused_with(RedisRefused, with_login(redis_url, f":{PASSWORD}"))


def test_nobody_there_is_unreachable() -> None:
    assert "Connection refused" in refused_with(RedisUnreachable, f"redis://:{PASSWORD}@127.0.0.1:1/0")
    refused_with(RedisUnreachable, "unix:///nowhere/at/all.sock")
    refused_with(RedisUnreachable, f"redis://:{PASSWORD}@nosuchhost.invalid:6379/0")


@pytest.mark.parametrize("url", ["redis://127.0.0.1:port", "http://127.0.0.1", "", "redis://[::1"])
def test_what_is_no_url_is_an_invalid_setting(url: str) -> None:
    refused_with(SettingInvalid, url)


def test_a_database_that_is_not_there_is_an_invalid_setting(redis_url: str) -> None:
    assert "out of range" in refused_with(SettingInvalid, redis_url.replace("/0", "/9999"))


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """A server that answers each request with ``answer(request)``, for those that no test machine has."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while request := connection.recv(65536):
                    connection.sendall(answer(request))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def as_server(information: bytes) -> Callable[[bytes], bytes]:
    def answer(request: bytes) -> bytes:
        if b"INFO" in request:
            return b"$%d\r\n%b\r\n" % (len(information), information)
        return b"+OK\r\n" * request.count(b"*")

    return answer


@pytest.mark.parametrize("version", ["5.0.7", "6.0.16", "strange"])
def test_an_old_server_is_too_old(version: str) -> None:
    with answering(as_server(f"# Server\r\nredis_version:{version}\r\n".encode())) as url:
        message = refused_with(RedisTooOld, url)
    assert version in message
    assert "6.2 or later" in message


def test_a_server_that_does_not_say_its_version_is_too_old() -> None:
    with answering(as_server(b"# Server\r\nos:Linux\r\n")) as url:
        assert "unknown" in refused_with(RedisTooOld, url)


def test_a_server_that_still_loads_its_data_is_unreachable() -> None:
    with answering(lambda request: b"-LOADING Redis is loading the dataset in memory\r\n" * request.count(b"*")) as url:
        assert "loading" in refused_with(RedisUnreachable, url)


def test_something_else_on_that_port_is_unreachable() -> None:
    with answering(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        refused_with(RedisUnreachable, url)


def test_a_port_that_accepts_and_never_answers_is_unreachable() -> None:
    with answering(lambda _: b"") as url, pytest.raises(RedisUnreachable):
        connect(url, "DC_REDIS_URL", socket_timeout_s=0.2)


def test_a_server_that_is_absent_is_reported_soon_and_one_that_vanishes_later_is_tried_for_longer(redis_url: str) -> None:
    with answering(lambda _: b"") as url:
        begun_s = time.monotonic()
        refused_with(RedisUnreachable, url)
        assert time.monotonic() - begun_s < 3.0  # two tries of one second each
    with connect(redis_url, "DC_REDIS_URL") as client:
        assert client.get_retry().get_retries() == 4
        assert client.connection_pool.get_connection().retry.get_retries() == 4


def test_a_unix_socket_works_too(redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "redis.sock"  # short: the system allows about 100 characters
    server = subprocess.Popen([redis_server.program, "--port", "0", "--unixsocket", str(path), "--save", ""], stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if path.exists():
                break
            threading.Event().wait(0.02)
        with connect(f"unix://{path}", "DC_REDIS_URL") as client:
            assert client.ping()
    finally:
        server.terminate()
        server.wait()
