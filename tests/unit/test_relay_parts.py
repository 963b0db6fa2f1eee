"""Parts of the relay that need no server: addresses, logins, guessing, pauses, and the tunnel by a stand-in for its program."""
from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from multidict import CIMultiDict

from distributed_comfy.errors import RelayPauses, RelayRefused, RelayUnreachable, SettingInvalid, TunnelEnded, TunnelFailed, TunnelMissing
from distributed_comfy.relay.address import is_loopback, relay_address
from distributed_comfy.relay.dialing import Pause, explain
from distributed_comfy.relay.forwarder import split_login
from distributed_comfy.relay.requests import make_request
from distributed_comfy.relay.wire import REASON_HEADER, VERSION_HEADER, reason_text
from distributed_comfy.serve.doorman import Attempts
from distributed_comfy.serve.redis_door import redis_address
from distributed_comfy.serve.tunnel import open_tunnel
from tests.tunnel_program import FAILS, WORDS, lives, stand_in


@pytest.mark.parametrize(
    ("url", "socket"),
    [
        ("wss://x.example", "wss://x.example/distributed/v2/relay/state"),
        ("https://x.example/", "wss://x.example/distributed/v2/relay/state"),
        ("http://10.0.0.1:8187", "ws://10.0.0.1:8187/distributed/v2/relay/state"),
        ("wss://x.example:444/behind/a/proxy/", "wss://x.example:444/behind/a/proxy/distributed/v2/relay/state"),
        ("ws://[::1]:80", "ws://[::1]:80/distributed/v2/relay/state"),
        (" wss://user:pass@x.example?query#fragment ", "wss://x.example/distributed/v2/relay/state"),
    ],
)
def test_an_address_leads_to_its_web_sockets(url: str, socket: str) -> None:
    assert relay_address(url).of("state") == socket


@pytest.mark.parametrize("url", ["", "x.example", "redis://x:1", "wss://", "wss://x:99999", "wss://[::1", "file:///etc/passwd"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SettingInvalid):
        relay_address(url)


def test_the_systems_proxies_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    assert relay_address("wss://x.example").proxy() is None
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "near.example")
    assert relay_address("wss://x.example").proxy() == "http://proxy:3128"
    assert relay_address("ws://x.example").proxy() is None
    assert relay_address("wss://near.example:444").proxy() is None
    monkeypatch.setenv("HTTPS_PROXY", "proxy:3128")
    assert relay_address("wss://x.example").proxy() == "http://proxy:3128"


@pytest.mark.parametrize(
    ("arguments", "login", "greeting"),
    [
        ([b"AUTH", b"u", b"s"], (b"u", b"s"), b""),
        ([b"hello", b"3", b"auth", b"u", b"s"], (b"u", b"s"), make_request(b"hello", b"3")),
        ([b"HELLO", b"3", b"AUTH", b"u", b"s", b"SETNAME", b"n"], (b"u", b"s"), make_request(b"HELLO", b"3", b"SETNAME", b"n")),
        ([b"AUTH", b"s"], None, b""),
        ([b"HELLO", b"3"], None, b""),
        ([b"PING"], None, b""),
    ],
)
def test_a_login_is_taken_out_of_the_first_request(arguments: list[bytes], login: Any, greeting: bytes) -> None:
    assert split_login(arguments) == (login, greeting)


@pytest.mark.parametrize(
    ("url", "where", "database"),
    [
        ("redis://:pw@10.0.0.1:7000/3", ("10.0.0.1", 7000, ""), 3),
        ("redis://u:p@h", ("h", 6379, ""), 0),
        ("unix://u:p@/run/redis%20a.sock?db=2", ("localhost", 6379, "/run/redis a.sock"), 2),
        ("redis://h?db=5", ("h", 6379, ""), 5),
    ],
)
def test_a_redis_url_becomes_an_address_without_a_secret(url: str, where: tuple[str, int, str], database: int) -> None:
    address = redis_address(url)
    assert (address.host, address.port, address.path) == where and address.database == database
    assert "pw" not in repr(address)


def test_failures_are_free_at_first_then_each_doubles_the_wait() -> None:
    now = [0.0]
    attempts = Attempts(lambda: now[0])
    waits = []
    for _ in range(13):
        waits.append(attempts.wait_s("a", "u"))
        attempts.failed("a", "u")
    assert waits == [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert attempts.wait_s("b", "u") == attempts.wait_s("a", "neighbour") == 0
    now[0] += 59
    assert attempts.wait_s("a", "u") == 1
    now[0] += 1000
    assert attempts.wait_s("a", "u") == 0
    attempts.failed("a", "u")
    assert attempts.wait_s("a", "u") == 0


def test_a_success_is_a_new_start_and_old_addresses_are_forgotten() -> None:
    attempts = Attempts(lambda: 0.0)
    for _ in range(9):
        attempts.failed("a", "u")
    attempts.succeeded("a", "u")
    assert attempts.wait_s("a", "u") == 0
    for number in range(5000):
        attempts.failed(f"{number}", "u")
    assert len(attempts._failed) == 4096


@pytest.mark.parametrize(
    ("address", "own"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("x", False), ("", False)]
)
def test_loopback_is_told_from_others(address: str, own: bool) -> None:
    assert is_loopback(address) is own


def test_pauses_grow_and_are_spread() -> None:
    pause = Pause()
    assert pause.length_s(0.5) == 0
    lengths = []
    for _ in range(8):
        pause.tried(well=False)
        lengths.append((pause.length_s(0.0), pause.length_s(1.0)))
    assert lengths[0] == (0.05, 0.1) and lengths[-1] == (0.5, 1.0)
    assert [low for low, _ in lengths] == sorted(low for low, _ in lengths)
    pause.tried(well=True)
    assert pause.length_s(1.0) == 0


def test_a_reason_fits_a_close_frame() -> None:
    assert len(reason_text("ü" * 200)) <= 123 and reason_text("ü" * 200).decode() == "ü" * 61


# -- the tunnel -------------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script with its interpreter in the first line")
def test_a_tunnels_address_is_read_and_the_program_ends_with_the_context(tmp_path: Path) -> None:
    with open_tunnel("http://127.0.0.1:8187", program=str(stand_in(tmp_path, WORDS, lives=True))) as tunnel:
        assert tunnel.address == "wss://four-dashed-word-url.trycloudflare.com"
        pid, _, arguments = (tmp_path / "ran").read_text().partition(" ")
        assert arguments == "['tunnel', '--no-autoupdate', '--url', 'http://127.0.0.1:8187']"
        assert lives(int(pid))
        tunnel.check()
    give_up = time.monotonic() + 10
    while lives(int(pid)):
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script with its interpreter in the first line")
def test_a_tunnel_that_fails_is_told_with_its_own_words(tmp_path: Path) -> None:
    program = str(stand_in(tmp_path, FAILS, lives=False))
    with pytest.raises(TunnelFailed, match="no such host"), open_tunnel("http://127.0.0.1:1", program=program):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script with its interpreter in the first line")
def test_a_tunnel_without_an_address_is_given_up(tmp_path: Path) -> None:
    program = str(stand_in(tmp_path, "2026-01-11T19:57:55Z INF Requesting new quick Tunnel on trycloudflare.com...\n", lives=True))
    with pytest.raises(TunnelFailed, match="no address within"), open_tunnel("http://127.0.0.1:1", program=program, timeout_s=1.0):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script with its interpreter in the first line")
def test_a_tunnel_whose_program_is_killed_says_so_with_its_last_words(tmp_path: Path) -> None:
    with open_tunnel("http://127.0.0.1:8187", program=str(stand_in(tmp_path, WORDS, lives=True))) as tunnel:
        os.kill(int((tmp_path / "ran").read_text().partition(" ")[0]), signal.SIGKILL)
        give_up = time.monotonic() + 10
        with pytest.raises(TunnelEnded, match=r"ended by signal 9 after saying .*Registered tunnel connection.*; open it again"):
            while time.monotonic() < give_up:
                tunnel.check()
                time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script with its interpreter in the first line")
def test_nobody_waits_for_the_address_of_a_tunnel_that_is_not_wanted_any_more(tmp_path: Path) -> None:
    program, stop, began = str(stand_in(tmp_path, "no address\n", lives=True)), threading.Event(), time.monotonic()
    stop.set()
    with open_tunnel("http://127.0.0.1:1", program=program, stop=stop) as tunnel:
        assert tunnel.address == "" and time.monotonic() - began < 5


def test_a_tunnel_without_its_program_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(TunnelMissing, match="install"), open_tunnel("http://127.0.0.1:1", program=str(tmp_path / "cloudflared")):
        pass


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (429, {VERSION_HEADER: "1", REASON_HEADER: "too many failed logins"}, RelayPauses),
        (429, {}, RelayUnreachable),
        (502, {}, RelayUnreachable),
        (401, {VERSION_HEADER: "1"}, RelayRefused),
    ],
)
def test_too_many_failed_logins_are_no_relay_that_is_away(status: int, headers: dict[str, str], told: type[Exception]) -> None:
    answer = aiohttp.WSServerHandshakeError(cast(Any, None), (), status=status, message="no", headers=CIMultiDict(headers))
    error = explain(answer, "wss://x.example", "dc-host-pod1")
    assert type(error) is told
    assert ("was revoked" in str(error) and "tunnel" not in str(error)) is (told is RelayPauses)
