"""`distributed-comfy serve` as a command: its own TLS, the system's proxy, a tunnel, the embedded Redis, and how it ends."""
from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from distributed_comfy.access.join import open_join
from distributed_comfy.access.token import read_token
from distributed_comfy.errors import RelayTlsFailed, RelayUnreachable
from distributed_comfy.relay.client import relay_urls
from distributed_comfy.settings import read_settings
from tests.command_line import PROJECT, until
from tests.panel_rig import Page
from tests.relay_rig import SECRET, USER, ServeProcess, health, make_certificate, make_user, served
from tests.tunnel_program import WORDS, lives, stand_in

pytestmark = [pytest.mark.redis, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def environment(cluster_servers: Any) -> dict[str, str]:
    make_user(cluster_servers.state_url, cluster_servers.blob_url)
    return {"DC_REDIS_URL": cluster_servers.state_url, "DC_BLOB_URL": cluster_servers.blob_url}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One of our own for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    make_certificate(folder)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def secure(
    environment: dict[str, str], certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServeProcess]:
    options = ("--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]))
    with served(tmp_path_factory.mktemp("secure"), *options, **environment) as process:
        yield process


def test_serve_speaks_tls_itself(secure: ServeProcess, certificate: tuple[Path, Path]) -> None:
    assert secure.join_url.startswith("wss://")
    with relay_urls(secure.join_url, USER, SECRET, ca=certificate[0].read_text()) as found, redis.Redis.from_url(found.redis_url) as client:
        assert client.ping()


def test_a_certificate_of_an_unknown_authority_is_told(secure: ServeProcess) -> None:
    with pytest.raises(RelayTlsFailed, match="CA"), relay_urls(secure.join_url, USER, SECRET):
        pass


def test_a_certificate_for_another_name_is_told(secure: ServeProcess, certificate: tuple[Path, Path]) -> None:
    with pytest.raises(RelayTlsFailed), relay_urls(f"wss://localhost:{secure.port}", USER, SECRET, ca=certificate[0].read_text()):
        pass


def test_plain_talk_to_a_tls_port_is_told(secure: ServeProcess) -> None:
    with pytest.raises(RelayUnreachable), relay_urls(f"ws://127.0.0.1:{secure.port}", USER, SECRET):
        pass


@contextmanager
def connect_proxy() -> Iterator[tuple[int, list[str]]]:
    """An HTTP proxy that opens tunnels; its port, and whither it was asked to."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[str] = []

    def serve(client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        method, target, _ = head.decode().split(" ", 2)
        asked.append(f"{method} {target}")
        host, _, port = target.rpartition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=carry, args=(server, client), daemon=True).start()
        carry(client, server)

    def carry(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                target.sendall(data)
        except OSError:
            pass
        target.close()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1]), asked
    finally:
        listener.close()


def use_proxy(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Whatever this machine has."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")


def test_the_systems_proxy_is_used(secure: ServeProcess, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with connect_proxy() as (port, asked):
        use_proxy(monkeypatch, port)
        ca = certificate[0].read_text()
        with relay_urls(secure.join_url, USER, SECRET, ca=ca) as found, redis.Redis.from_url(found.blob_url) as client:
            client.set("dc:blob:proxied:0", b"x" * 1_000_000, ex=60)
            assert client.strlen("dc:blob:proxied:0") == 1_000_000
        assert asked and set(asked) == {f"CONNECT 127.0.0.1:{secure.port}"}


def test_a_proxy_that_is_away_is_told(secure: ServeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = int(unused.getsockname()[1])
    use_proxy(monkeypatch, port)
    with pytest.raises(RelayUnreachable, match="this system's proxy"), relay_urls(secure.join_url, USER, SECRET):
        pass


def test_a_tunnel_ends_with_serve_even_when_that_is_killed(environment: dict[str, str], tmp_path: Path) -> None:
    stand_in(tmp_path, WORDS, lives=True)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    with served(tmp_path, "--tunnel", PATH=path, **environment) as process:
        assert process.join_url == "wss://four-dashed-word-url.trycloudflare.com"
        pid, _, arguments = (tmp_path / "ran").read_text().partition(" ")
        assert f"http://127.0.0.1:{process.port}" in arguments
        process.process.kill()
        until(lambda: not lives(int(pid)))


def test_serve_goes_on_without_its_tunnel_and_says_so(environment: dict[str, str], tmp_path: Path) -> None:
    stand_in(tmp_path, WORDS, lives=True)
    own = {"XDG_CONFIG_HOME": str(tmp_path / "home"), "DC_RUNTIME_DIR": str(tmp_path / "run"), **environment}
    with served(tmp_path, "--tunnel", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", **own) as process:
        printed = subprocess.run(
            [sys.executable, "-m", "distributed_comfy", "comfyui", "token"], env={**os.environ, "PYTHONPATH": str(PROJECT), **own},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        page = Page(process.url, printed.stdout.strip())
        assert page.state()["tunnel"]["error"] is None
        os.kill(int((tmp_path / "ran").read_text().partition(" ")[0]), signal.SIGKILL)
        tunnel = until(lambda: (found := page.state()["tunnel"])["state"] == "ended" and found)
        assert tunnel["error"]["code"] == "tunnel_ended" and "signal 9" in tunnel["error"]["message"] and tunnel["error"]["remedy"]
        assert "serve goes on without it" in process.log() and process.process.poll() is None and health(process.url)["version"]
        page.post("/tunnel")
        until(lambda: page.state()["tunnel"]["state"] == "open")


def test_an_invitation_by_a_tunnel_serves_for_as_long_as_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, WORDS, lives=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    environment = {
        **os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "DC_REDIS_URL": "", "DC_BLOB_URL": "",
        "DC_RUNTIME_DIR": str(tmp_path / "run"), "PYTHONPATH": str(PROJECT),
    }  # fmt: skip
    command = [sys.executable, "-m", "distributed_comfy", "invite", "--name", "pod1", "--tunnel"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("distributed-comfy up --join "), process.communicate()
            token = read_token(line.split()[-1])
            assert (token.host, token.url) == ("pod1", "wss://four-dashed-word-url.trycloudflare.com")
            pid, _, arguments = (tmp_path / "ran").read_text().partition(" ")
            here = re.search(r"http://(127[.]0[.]0[.]1:\d+)", arguments)
            assert here is not None
            with open_join(replace(token, url=f"ws://{here[1]}").text, read_settings()) as joined:
                assert joined.host == "pod1"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) in (0, 130)
            until(lambda: not lives(int(pid)))
        finally:
            process.kill()


def run_serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distributed_comfy", "serve", *arguments]
    given = {**os.environ, "PYTHONPATH": str(PROJECT), **environment}
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)


def test_what_serve_cannot_do_is_said_with_the_option(environment: dict[str, str], certificate: tuple[Path, Path], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = run_serve("--port", str(taken.getsockname()[1]), **environment)
    assert busy.returncode == 2 and "--port" in busy.stderr
    foreign = run_serve("--host", "192.0.2.1", "--port", "0", **environment)
    assert foreign.returncode == 2 and "--host" in foreign.stderr
    unreadable = run_serve("--port", "0", "--tls-cert", str(certificate[1]), **environment)
    assert unreadable.returncode == 2 and "--tls-cert" in unreadable.stderr
    both = run_serve("--port", "0", "--tunnel", "--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]), **environment)
    assert both.returncode == 2 and "--tunnel" in both.stderr
    missing = run_serve("--port", "0", "--tunnel", PATH=str(tmp_path), **environment)
    assert missing.returncode == 3 and "cloudflared" in missing.stderr


def test_without_a_configured_redis_serve_keeps_the_embedded_one(tmp_path: Path) -> None:
    with served(tmp_path, DC_REDIS_URL="", DC_BLOB_URL="", DC_RUNTIME_DIR=str(tmp_path / "run")) as process:
        assert health(process.url)["servers"] == {"state": True, "blobs": True}
        runtime = next((tmp_path / "run").rglob("runtime.json"))
        process.process.send_signal(signal.SIGINT)
        process.process.wait(timeout=30)
    assert not runtime.exists()
