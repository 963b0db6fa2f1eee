"""A Redis of one's own with TLS: workers, jobs and Celery's results by it, invitations with its URL; and no plain URL to another host."""
from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from distributed_comfy.access.certificates import ensure_certificates
from distributed_comfy.access.join import open_join
from distributed_comfy.errors import DoorRefused, SettingInvalid
from distributed_comfy.orchestrator.inviting import InviteOptions, invite, invites_of, revoke
from distributed_comfy.orchestrator.servers import redis_servers
from distributed_comfy.settings import Settings, read_settings
from tasks.app import celery_url
from tests.command_line import CommandLine, pictures, until
from tests.conftest import missing_service

pytestmark = [pytest.mark.redis, pytest.mark.timeout(180)]


@dataclass(frozen=True)
class TlsServer:
    """One server that is state and blobs, with TLS only."""

    port: int
    ca: Path

    @property
    def place(self) -> str:
        """As another host reaches it."""
        return f"rediss://127.0.0.1:{self.port}/0"

    @property
    def url(self) -> str:
        """The owner's."""
        return f"rediss://127.0.0.1:{self.port}/0?ssl_ca_certs={self.ca}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TlsServer]:
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        missing_service("a redis-server or valkey-server in PATH", "install one (Debian, Ubuntu: apt-get install redis-server)")
    certificates = ensure_certificates(tmp_path / "tls", ["127.0.0.1"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found = TlsServer(probe.getsockname()[1], certificates.ca)
    (tmp_path / "users.acl").write_text("user default on nopass ~* &* +@all\n")
    options = {"port": "0", "tls-port": str(found.port), "tls-cert-file": str(certificates.certificate),
               "tls-key-file": str(certificates.key),
               "tls-ca-cert-file": str(certificates.ca), "tls-auth-clients": "no", "bind": "127.0.0.1", "dir": str(tmp_path), "save": "",
               "aclfile": str(tmp_path / "users.acl")}  # fmt: skip
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    process = subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(found))
        yield found
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(server: TlsServer) -> bool:
    try:
        with redis.Redis.from_url(server.url) as client:
            return bool(client.ping())
    except redis.ConnectionError:  # not yet
        return False


@pytest.fixture
def settings(server: TlsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return read_settings(redis_url=server.url, host="master", cache_dir=tmp_path / "cache")


def options(server: TlsServer) -> InviteOptions:
    return InviteOptions(name="pc2", url=server.place, ca_file=server.ca)


def test_a_job_runs_by_tls_with_a_worker_that_was_invited_by_url(server: TlsServer, settings: Settings, tmp_path: Path) -> None:
    token = invite(settings, options(server))
    (tmp_path / "token").write_text(token.text)
    (tmp_path / "line").mkdir()
    line = CommandLine(tmp_path / "line", DC_CONFIG="/dev/null")
    worker = line.start("worker", "--engine", "builtin", "--device", "cpu", "--join", f"@{tmp_path / 'token'}")
    try:
        own = {"DC_REDIS_URL": server.url, "DC_HOST": "master"}
        until(lambda: line.run("workers", "list", "--json", **own).json, timeout_s=60)
        done = line.run("run", line.write("prompt.json", pictures()), "--items", "2", "--out", "out", **own)
        assert done.status == 0, done.err
        assert len(list((line.folder / "out").glob("*.png"))) == 2 and "pc2-cpu" in done.err + done.out
        (told,) = line.run("invite", "list", "--json", **own).json
        assert told["name"] == "pc2" and told["joined_ms"] and told["connections"] > 0
        assert line.run("invite", "revoke", "pc2", **own).status == 0
        until(lambda: all(each["state"] == "lost" for each in line.run("workers", "list", "--json", **own).json), timeout_s=30)
    finally:
        worker.terminate()
        said = line.finish(worker)
    assert token.secret not in said.err + said.out + done.err


def test_celerys_result_api_reads_by_tls(server: TlsServer, settings: Settings) -> None:
    from distributed_comfy.orchestrator.api import celery_app

    with celery_app(settings=settings) as app:
        assert app.AsyncResult("0123456789ab-0").state == "PENDING"
        assert app.control.ping(timeout=0.1) == []


@pytest.mark.parametrize(
    ("given", "in_celerys_words"),
    [
        ("rediss://h/0", "rediss://h/0?ssl_cert_reqs=required&ssl_check_hostname=true"),
        ("rediss://h/0?ssl_ca_certs=/a/b.pem", "rediss://h/0?ssl_cert_reqs=required&ssl_check_hostname=true&ssl_ca_certs=/a/b.pem"),
        ("rediss://h/0?ssl_cert_reqs=none", "rediss://h/0?ssl_cert_reqs=none&ssl_check_hostname=true"),
        ("redis://h/0", "redis://h/0"),
    ],
)
def test_celery_is_told_to_check_the_certificate(given: str, in_celerys_words: str) -> None:
    assert celery_url(given) == in_celerys_words


def test_celery_refuses_a_server_of_another_authority(server: TlsServer, settings: Settings, tmp_path: Path) -> None:
    from kombu.exceptions import OperationalError

    from tasks.app import make_app

    other = ensure_certificates(tmp_path / "other", ["127.0.0.1"])
    app = make_app(settings, f"{server.place}?ssl_ca_certs={other.ca}")
    with app.connection_for_write() as connection, pytest.raises(OperationalError, match="certificate verify failed"):
        connection.ensure_connection(max_retries=1, reraise_as_library_errors=True)
    app.close()


def test_a_url_that_does_not_answer_with_tls_invites_nobody(server: TlsServer, settings: Settings) -> None:
    for url, ca_file in (("rediss://127.0.0.1:1/0", server.ca), (server.place, None)):
        with pytest.raises(DoorRefused, match="correct the URL"):
            invite(settings, InviteOptions(name="pc2", url=url, ca_file=ca_file))
    with invites_of(settings) as (invites, _):
        assert invites.all() == []


@pytest.mark.parametrize("url", ["wss://127.0.0.1:1/cluster", "ws://127.0.0.1:1"])
def test_a_relay_that_does_not_answer_invites_nobody_unless_that_is_asked_for(server: TlsServer, settings: Settings, url: str) -> None:
    with pytest.raises(DoorRefused, match=r"no answer from the relay.*start `distributed-comfy serve`.*--no-check invites all the same"):
        invite(settings, InviteOptions(name="pc2", url=url))
    with invites_of(settings) as (invites, _):
        assert invites.all() == []
    assert invite(settings, InviteOptions(name="pc2", url=url, check=False)).url == url
    revoke(settings, "pc2")


@pytest.mark.parametrize("url", ["redis://10.0.0.1:6379/0", "http://10.0.0.1", "rediss://user:pw@10.0.0.1/0"])
def test_an_invitation_with_an_unfit_url_is_refused(settings: Settings, url: str) -> None:
    with pytest.raises(SettingInvalid, match="--url"):
        invite(settings, InviteOptions(name="pc2", url=url))


def test_a_configured_server_needs_a_url(settings: Settings) -> None:
    with pytest.raises(SettingInvalid, match="say by which rediss:// or wss:// URL"):
        invite(settings, InviteOptions(name="pc2"))


def test_a_relays_url_makes_a_user_and_a_token(server: TlsServer, settings: Settings) -> None:
    token = invite(settings, InviteOptions(name="pod", url="wss://example.org/relay", check=False))
    assert (token.url, token.blob_url, token.user) == ("wss://example.org/relay", "", "dc-host-pod")
    with redis.Redis.from_url(f"{token.with_user(server.place)}?ssl_ca_certs={server.ca}") as client:
        assert client.ping()
    revoke(settings, "pod")


@pytest.mark.parametrize("setting", ["DC_REDIS_URL", "DC_BLOB_URL"])
def test_a_plain_url_to_another_host_needs_the_owners_word(setting: str) -> None:
    urls = {
        "redis_url": "redis://127.0.0.1:1/0",
        "blob_url": "redis://localhost:1/0",
        setting.lower().removeprefix("dc_"): "redis://u:pw@10.0.0.1/0",
    }
    with (
        pytest.raises(SettingInvalid, match=rf"^{setting}: .*rediss://.*invite.*DC_ALLOW_PLAINTEXT=1") as refused,
        redis_servers(read_settings(**urls)),
    ):
        pass
    assert "pw" not in str(refused.value)
    with redis_servers(read_settings(**urls, allow_plaintext=True)) as servers:
        assert "10.0.0.1" in servers.redis_url + servers.blob_url


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "redis://[::1]:1", "redis://localhost", "unix:///s", "rediss://10.0.0.1"])
def test_what_is_not_in_the_clear_needs_nobodys_word(url: str) -> None:
    with redis_servers(read_settings(redis_url=url)) as servers:
        assert servers.redis_url == url


def test_a_token_in_the_clear_is_followed_only_where_that_is_allowed(server: TlsServer, settings: Settings) -> None:
    allowed = settings.model_copy(update={"allow_plaintext": True})
    token = invite(allowed, InviteOptions(name="pc2", url="redis://10.0.0.1:6379/0", check=False))
    with pytest.raises(SettingInvalid, match=r"--join: .*DC_ALLOW_PLAINTEXT"), open_join(token.text, read_settings()):
        pass
