"""An embedded server that one script keeps from everybody is freed, and keeps what was stored."""
from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from distributed_comfy.errors import RedisBusy
from distributed_comfy.state.connection import check_server, connect, in_our_words
from distributed_comfy.state.server_process import ServerProcess
from distributed_comfy.state.stuck_server import StuckServerWatch
from tests.command_line import until
from tests.conftest import missing_service

pytestmark = [pytest.mark.redis, pytest.mark.timeout(120)]

ENDLESS = "while true do end"
UNKILLABLE = "redis.call('set', 'written', 'by the script') while true do end"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        missing_service("a redis-server or valkey-server in PATH", "install one (Debian, Ubuntu: apt-get install redis-server)")
    options = {"appendonly": "yes", "appendfsync": "always", "lua-time-limit": "100"}
    found = ServerProcess(tmp_path / "state", os.path.abspath(program), options, data_matters=True)
    found.start(lambda: False)
    yield found
    found.end()


def keep_busy(server: ServerProcess, source: str) -> threading.Thread:
    client: Any = redis.Redis.from_url(server.url, retry=None)

    def run() -> None:
        with suppress(redis.RedisError):  # how it ends is the test's business
            client.eval(source, 0)

    thread = threading.Thread(target=run)
    thread.start()
    until(server.is_stuck)
    return thread


@pytest.mark.parametrize(("source", "same_process"), [(ENDLESS, True), (UNKILLABLE, False)])
def test_a_server_that_a_script_keeps_is_freed_and_has_what_was_stored(server: ServerProcess, source: str, same_process: bool) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set("stored", "before")
        watch = StuckServerWatch(server, "state", lambda: False, patience_s=0.3, last_patience_s=2.0)
        url, pid = server.url, server.pid
        thread = keep_busy(server, source)

        def freed() -> bool:
            watch.look()
            return not server.is_stuck()

        until(freed)
        thread.join(20)
        assert server.url == url and (server.pid == pid) == same_process
        assert client.get("stored") == b"before" and client.get("written") is None
        watch.look()
        assert server.is_running()


def test_a_busy_server_is_told_as_such_and_not_as_a_wrong_setting(server: ServerProcess) -> None:
    thread = keep_busy(server, ENDLESS)
    try:
        with redis.Redis.from_url(server.url, retry=None) as client:
            with pytest.raises(RedisBusy, match="SCRIPT KILL"):
                check_server(client, server.url, "DC_REDIS_URL")
            with pytest.raises(RedisBusy):
                connect(server.url, "DC_REDIS_URL")
            for ask in (lambda: client.get("x"), lambda: client.pipeline(transaction=False).get("x").execute()):
                with pytest.raises(redis.ResponseError) as caught:
                    ask()
                assert isinstance(in_our_words(caught.value, "the state Redis", "DC_REDIS_URL"), RedisBusy)
    finally:
        server.end_script()
        thread.join(20)
