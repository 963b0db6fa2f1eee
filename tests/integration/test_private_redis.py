"""The Redis that all other tests get: two private servers, as in production, and what happens where the program is missing."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

THIS_FILE = Path(__file__).resolve()
pytestmark = pytest.mark.redis


def option(url: str, name: str) -> str:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return str(client.config_get(name)[name])


def test_state_is_kept_in_a_file_and_blobs_are_not(redis_url: str, blob_url: str) -> None:
    assert (option(redis_url, "appendonly"), option(blob_url, "appendonly")) == ("yes", "no")
    assert (option(redis_url, "save"), option(blob_url, "save")) == ("", "")
    assert (option(redis_url, "maxmemory-policy"), option(blob_url, "maxmemory-policy")) == ("noeviction", "noeviction")


def test_the_servers_listen_on_loopback_only(redis_url: str, blob_url: str) -> None:
    assert (option(redis_url, "bind"), option(blob_url, "bind")) == ("127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize("round_", [1, 2])
def test_each_test_starts_with_empty_servers(round_: int, redis_url: str, blob_url: str) -> None:
    for url in (redis_url, blob_url):
        with redis.Redis.from_url(url) as client:
            assert client.set("left behind", round_, nx=True)


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")])
def test_a_missing_server_skips_here_and_fails_in_ci(ci: str, outcome: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{THIS_FILE}::test_the_servers_listen_on_loopback_only"]
    environment = {**os.environ, "CI": ci, "PATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=THIS_FILE.parents[2], timeout=60)
    assert outcome in done.stdout.splitlines()[-1]
    assert "needs a redis-server or valkey-server in PATH; install one" in done.stdout
