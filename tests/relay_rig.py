"""`distributed-comfy serve` as a process of its own before private servers, with a user as an invite makes one."""
from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import redis

from tests.command_line import PROJECT, until
from tests.conftest import missing_service

HOST = "pc1"
USER = f"dc-host-{HOST}"
SECRET = "s3cret/with:signs@and spaces"
"""Every character that means something in a URL or a header."""


class ServeProcess:
    """The command, from its start until `stop`."""

    def __init__(self, folder: Path, *arguments: str, port: int = 0, **environment: str) -> None:
        self._log = folder / f"serve-{len(list(folder.glob('serve-*')))}.log"
        command = [sys.executable, "-m", "distributed_comfy", "serve", "--port", str(port), *arguments]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
                env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
            )  # fmt: skip
        self.url, self.join_url = until(self._announced)
        self.port = int(self.url.rpartition(":")[2])

    def _announced(self) -> tuple[str, str] | None:
        assert self.process.poll() is None, self.log()
        found = re.search(r"Relay for .* is at (\S+); workers join by (\S+)", self.log())
        return (found[1], found[2]) if found else None

    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text(errors="replace")

    def stop(self) -> int:
        """End it as a supervisor does; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=20)
        finally:
            self.process.kill()


@contextmanager
def served(folder: Path, *arguments: str, port: int = 0, **environment: str) -> Iterator[ServeProcess]:
    """A `ServeProcess` for as long as the context lasts."""
    process = ServeProcess(folder, *arguments, port=port, **environment)
    try:
        yield process
    finally:
        process.stop()


def make_user(*urls: str, user: str = USER, secret: str = SECRET) -> None:
    """A user who may do everything: what is refused to it, the relay has refused."""
    for url in urls:
        with redis.Redis.from_url(url) as client:
            client.execute_command("ACL", "SETUSER", user, "reset", "on", f">{secret}", "~*", "&*", "+@all")


@dataclass(frozen=True)
class Answer:
    """What an HTTP request was answered."""

    status: int
    headers: Message
    text: str


def ask(url: str, **headers: str) -> Answer:
    """A GET request; names of headers with ``_`` for ``-``."""
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return Answer(answer.status, answer.headers, answer.read().decode())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.headers, error.read().decode())


def basic(user: str = USER, secret: str = SECRET) -> str:
    """The header Authorization."""
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()


def upgrade(port: int, path: str = "/distributed/v2/relay/state", **headers: str) -> Answer:
    """What a WebSocket handshake is answered, as it is on the wire; the connection is closed after it."""
    fixed = {
        "Host": "x", "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    }  # fmt: skip
    given = {**fixed, **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value)]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        said = b""
        while b"\r\n\r\n" not in said and (part := connection.recv(4096)):
            said += part
    head, *fields = said.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    found = Message()
    for field in fields:
        name, _, value = field.partition(": ")
        found[name] = value
    return Answer(int(head.split(" ")[1]), found, "")


def health(url: str) -> dict[str, object]:
    """What the relay says of itself."""
    found: dict[str, object] = json.loads(ask(f"{url}/distributed/v2/health").text)
    return found


NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
{server}
}}
"""


def documented_server(folder: Path, **changes: str) -> str:
    """The server block of docs/relay.md with the files of `make_certificate`.

    Args:
        folder: of the certificate.
        changes: ``listen`` and ``target``, where this machine's are others than the documented ones.
    """
    (block,) = re.findall(r"```nginx\n(.*?)```", (PROJECT / "docs" / "relay.md").read_text(encoding="utf-8"), re.DOTALL)
    here = {"/etc/ssl/fullchain.pem": str(folder / "cert.pem"), "/etc/ssl/privkey.pem": str(folder / "key.pem"),
            "listen 443": f"listen {changes.get('listen', '443')}", "127.0.0.1:8187": changes.get("target", "127.0.0.1:8187")}  # fmt: skip
    for documented, ours in here.items():
        assert documented in block, documented
        block = block.replace(documented, ours)
    return str(block)


def make_certificate(folder: Path, name: str = "IP:127.0.0.1") -> str:
    """One for an address or a name (``DNS:...``), which is its own authority, in ``cert.pem`` and ``key.pem``; its text."""
    if shutil.which("openssl") is None:
        missing_service("openssl in PATH", "apt-get install openssl")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command, *files, "-subj", "/CN=relay", "-addext", f"subjectAltName={name}"], check=True, capture_output=True)
    return (folder / "cert.pem").read_text()


@dataclass(frozen=True)
class Proxy:
    """A running nginx."""

    url: str
    ca: str


@contextmanager
def nginx(
    folder: Path, relay: ServeProcess, change: Callable[[str], str] = lambda block: block, host: str = "127.0.0.1"
) -> Iterator[Proxy]:
    """nginx before a relay, configured as docs/relay.md says, as a normal user's program."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        missing_service("nginx", "apt-get install nginx-light")
    with socket.create_server((host, 0)) as unused:
        port = int(unused.getsockname()[1])
    folder.mkdir()
    ca, config = make_certificate(folder, f"IP:{host}"), folder / "nginx.conf"
    server = documented_server(folder, listen=f"{host}:{port}", target=f"127.0.0.1:{relay.port}")
    config.write_text(NGINX.format(folder=folder, server=change(server)))
    with (folder / "out").open("wb") as log:
        process = subprocess.Popen([program, "-p", str(folder), "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        until(lambda: _listens(host, port) or process.poll() is not None)
        assert process.poll() is None, (folder / "out").read_text()
        yield Proxy(f"wss://{host}:{port}", ca)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def refused(relay: ServeProcess) -> list[str]:
    """Lines of the log about requests that did not pass."""
    return re.findall(r".*\b[A-Z]+ refused: .*|.*\b[1-9]\d* requests refused.*", relay.log())
