"""Invitations on the embedded servers: the door, the user, the token, their end."""
from __future__ import annotations

import json
import os
import signal
import socket
import stat
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from distributed_comfy.access.certificates import ensure_certificates
from distributed_comfy.access.invites import Invites, Place
from distributed_comfy.access.join import (
    WrittenConfiguration,
    forget_token,
    keep_token,
    note_configuration,
    open_join,
    stored_token,
    written_configuration,
)
from distributed_comfy.access.token import JoinToken, read_token
from distributed_comfy.access.users import ServerUsers
from distributed_comfy.errors import (
    DoorRefused,
    HostNotInvitable,
    InviteRefused,
    InviteUnknown,
    JoinedUnreachable,
    RelayUnreachable,
    ServerNotTrusted,
    SettingInvalid,
    TokenUnreadable,
)
from distributed_comfy.orchestrator import inviting
from distributed_comfy.orchestrator.inviting import InviteOptions, invite, invites_of, revoke
from distributed_comfy.orchestrator.servers import cluster_servers
from distributed_comfy.settings import Settings, read_settings
from distributed_comfy.state.door import read_plan
from distributed_comfy.state.embedded import EmbeddedRedis, start_embedded
from distributed_comfy.state.keys import Keys
from tasks.cluster import open_cluster
from tasks.reaper import reap_once
from tests.command_line import CommandLine, until
from tests.relay_rig import served

pytestmark = [pytest.mark.redis, pytest.mark.timeout(120)]

OPTIONS = InviteOptions(name="pc2", bind="127.0.0.1", port=0)


def owners_client(embedded: EmbeddedRedis) -> Any:
    return redis.Redis.from_url(embedded.state_url, decode_responses=True)


def test_a_host_that_was_invited_comes_in_by_tls_and_sees_both_servers(settings: Settings, owner: EmbeddedRedis) -> None:
    token = invite(settings, OPTIONS)
    with open_join(token.text, read_settings()) as joined:
        assert (joined.host, joined.settings.host_name, joined.settings.key_prefix) == ("pc2", "pc2", "dc:")
        assert joined.redis_url.startswith("rediss://") and joined.redis_url == joined.settings.redis_url
        with closing(redis.Redis.from_url(joined.redis_url)) as client:
            assert client.ping() and isinstance(client.connection_pool.make_connection(), redis.SSLConnection)
        cluster = open_cluster(joined.settings, joined.redis_url, joined.blob_url)
        blob = cluster.blobs.put("0123456789ab:0:c:value0", [b"x" * 3_000_000], job_id="0123456789ab")
        assert bytes(cluster.blobs.get(blob)) == b"x" * 3_000_000 and cluster.invites is None
        with invites_of(settings) as (invites, _):
            (found,) = invites.all()
        assert found.name == "pc2" and found.joined_ms and found.connections >= 1
        cluster.close()


def test_an_accepted_token_is_kept_for_this_user_alone(settings: Settings, owner: EmbeddedRedis, home: Path) -> None:
    here = read_settings()
    assert stored_token(here) == ""
    token = invite(settings, OPTIONS)
    with open_join(token.text, here):
        pass
    assert stored_token(here) == token.text
    files = [path for path in home.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"joined.json", f"{token.fingerprint}.pem"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    with open_join(stored_token(here), here) as again:
        assert again.host == "pc2"
    forget_token(here)
    assert stored_token(here) == ""


def test_a_user_without_a_home_has_joined_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    assert stored_token(read_settings()) == "" and forget_token(read_settings()) == ""


def test_a_token_that_does_not_let_in_is_not_kept(settings: Settings, owner: EmbeddedRedis) -> None:
    token = invite(settings, OPTIONS)
    with pytest.raises(InviteRefused, match="ask for a new one"), open_join(replace(token, secret="wrong").text, read_settings()):
        pass
    assert stored_token(read_settings()) == ""


def test_a_server_with_another_authority_is_not_trusted(settings: Settings, owner: EmbeddedRedis, tmp_path: Path) -> None:
    token = invite(settings, OPTIONS)
    other = ensure_certificates(tmp_path / "other", ["127.0.0.1"])
    here = read_settings()
    with (
        pytest.raises(ServerNotTrusted, match=r"certificate verify failed.*ask for a new one \(`distributed-comfy invite --name pc2`\)"),
        open_join(replace(token, ca=other.ca.read_text()).text, here),
    ):
        pass
    assert not list((here.config_folder / "authorities").iterdir()), "what was refused leaves nothing"


def test_a_token_with_another_place_than_its_users_is_refused_in_a_sentence(settings: Settings, owner: EmbeddedRedis) -> None:
    token = replace(invite(settings, OPTIONS), prefix="other:")
    with pytest.raises(TokenUnreadable, match=r"with key prefix 'other:' there, so.* changed"), open_join(token.text, read_settings()):
        pass
    assert stored_token(read_settings()) == ""


def test_a_kept_invitation_that_nobody_answers_names_itself_and_how_to_leave(settings: Settings) -> None:
    with start_embedded(settings.runtime_folder, private=False):
        token, here = invite(settings, OPTIONS), read_settings()
        with open_join(token.text, here):
            pass
    until(lambda: not is_open(token))
    told = r"has joined as host 'pc2'.*`distributed-comfy up --leave`"
    with pytest.raises(JoinedUnreachable, match=told) as silent, open_join(stored_token(here), here):
        pass
    assert "--join" not in str(silent.value)
    with pytest.raises(JoinedUnreachable, match="up --leave"), cluster_servers(here) as (mine, servers):
        open_cluster(mine, servers.redis_url, servers.blob_url)


def test_leaving_takes_the_authority_along_or_the_agent_does_that_still_needs_it(settings: Settings, owner: EmbeddedRedis) -> None:
    token, here = invite(settings, OPTIONS), read_settings()
    authorities = here.config_folder / "authorities"
    with open_join(token.text, here):
        forget_token(here, agent_runs=True)
        assert [path.stem for path in authorities.iterdir()] == [token.fingerprint]
    assert not list(authorities.iterdir())
    with open_join(token.text, here):
        pass
    assert list(authorities.iterdir())
    forget_token(here)
    assert not list(authorities.iterdir())


def test_a_token_is_kept_when_its_caller_says_so(settings: Settings, owner: EmbeddedRedis) -> None:
    token, here = invite(settings, OPTIONS), read_settings()
    with open_join(token.text, here, keep=False):
        assert stored_token(here) == ""
        keep_token(token, here)
    assert stored_token(here) == token.text


def test_what_joining_wrote_is_noted_as_it_was_before_the_first_of_several_clusters(settings: Settings, owner: EmbeddedRedis) -> None:
    token, here = invite(settings, OPTIONS), read_settings()
    note_configuration(here, WrittenConfiguration("/w.json", written=True, before=None))
    assert written_configuration(here) is None, "no cluster is joined"
    keep_token(token, here)
    note_configuration(here, WrittenConfiguration("/w.json", written=True, before=None))
    keep_token(token, here)
    note_configuration(here, WrittenConfiguration("/w.json", written=False, before=True))
    assert written_configuration(here) == WrittenConfiguration("/w.json", written=False, before=None)
    note_configuration(here, None)
    assert written_configuration(here) is None and stored_token(here) == token.text


def test_a_host_that_is_shut_out_loses_its_connections_at_once_and_the_door_closes(settings: Settings, owner: EmbeddedRedis) -> None:
    token = invite(settings, OPTIONS)
    with open_join(token.text, read_settings()) as joined:
        client = redis.Redis.from_url(joined.redis_url, retry=None, decode_responses=True)
        listener = client.pubsub()
        listener.subscribe("dc:orders:pc2-cpu")
        revoke(settings, "pc2")
        with pytest.raises((redis.ConnectionError, redis.AuthenticationError)):
            client.ping()
        with pytest.raises((redis.ConnectionError, redis.AuthenticationError)):
            for _ in range(3):
                listener.get_message(timeout=1.0)
    until(lambda: not is_open(token))
    with pytest.raises((InviteRefused, JoinedUnreachable)), open_join(token.text, read_settings()):
        pass
    with owners_client(owner) as client:
        assert client.acl_users() == ["default"] and not client.exists(Keys("dc:")("invites"), Keys("dc:")("joined", "pc2"))
    with pytest.raises(InviteUnknown):
        revoke(settings, "pc2")


def is_open(token: JoinToken) -> bool:
    parts = urlsplit(token.url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), 1.0):
            return True
    except OSError:
        return False


def test_the_revoked_host_is_told_so_while_the_door_is_open_for_others(settings: Settings, owner: EmbeddedRedis) -> None:
    token = invite(settings, OPTIONS)
    other = invite(settings, InviteOptions(name="pc3", bind="127.0.0.1"))
    assert other.url == token.url, "a door that is open keeps its ports"
    revoke(settings, "pc2")
    with pytest.raises(InviteRefused, match="revoked"), open_join(token.text, read_settings()):
        pass
    with open_join(other.text, read_settings()) as joined:
        assert joined.host == "pc3"


def expire_now(client: Any, host: str) -> None:
    """An invitation lasts until this moment, by the clock of the server."""
    invites = Keys("dc:")("invites")
    seconds, micros = client.time()
    record = {**json.loads(client.hget(invites, host)), "expires_ms": seconds * 1000 + micros // 1000}
    client.hset(invites, host, json.dumps(record))


def test_an_invitation_that_expires_unused_goes_with_its_user_and_one_that_was_used_stays(settings: Settings, owner: EmbeddedRedis) -> None:
    unused, used = (invite(settings, replace(OPTIONS, name=name)) for name in ("pc2", "pc3"))
    with open_join(used.text, read_settings()):
        pass
    cluster = open_cluster(settings, owner.state_url, owner.blob_url)

    def users() -> set[str]:
        reap_once(cluster, os.urandom(4).hex())  # what every worker of the owner and every command does
        return set(cluster.client.acl_users())

    assert users() == {"default", "dc-host-pc2", "dc-host-pc3"}
    with owners_client(owner) as client:
        for host in ("pc2", "pc3"):
            expire_now(client, host)
    until(lambda: users() == {"default", "dc-host-pc3"}, timeout_s=30)
    cluster.close()
    with redis.Redis.from_url(owner.blob_url, decode_responses=True) as blobs:
        assert set(blobs.acl_users()) == {"default", "dc-host-pc3"}
    with pytest.raises(InviteRefused), open_join(unused.text, read_settings()):
        pass
    with open_join(used.text, read_settings()) as joined:
        assert joined.host == "pc3"


def test_the_door_is_shut_when_the_last_invitation_expires_unused(settings: Settings, owner: EmbeddedRedis) -> None:
    used, unused = invite(settings, OPTIONS), invite(settings, replace(OPTIONS, name="pc3"))
    with open_join(used.text, read_settings()):
        pass
    cluster = open_cluster(settings, owner.state_url, owner.blob_url)

    def names() -> list[str]:
        reap_once(cluster, os.urandom(4).hex())
        return list(cluster.client.hkeys(Keys("dc:")("invites")))

    expire_now(cluster.client, "pc3")
    until(lambda: names() == ["pc2"])
    assert is_open(unused), "for the one that has joined"
    revoke(settings, "pc2")
    until(lambda: not is_open(used))
    last = invite(settings, OPTIONS)
    assert is_open(last)
    expire_now(cluster.client, "pc2")
    until(lambda: names() == [])
    until(lambda: not is_open(last))
    assert read_plan(owner.folder) is None
    cluster.close()


def test_invited_hosts_and_the_door_outlive_the_servers(settings: Settings) -> None:
    with start_embedded(settings.runtime_folder, private=False) as first:
        token = invite(settings, OPTIONS)
        with open_join(token.text, read_settings()):
            pass
    assert until(lambda: not is_open(token)) and not Path(f"/proc/{first.pids[1]}").exists()
    with start_embedded(settings.runtime_folder, private=False) as second:
        assert second.state_url != first.state_url
        until(lambda: is_open(token))
        with open_join(token.text, read_settings()) as joined:
            assert joined.host == "pc2"


def test_the_door_ends_with_a_keeper_that_is_killed(settings: Settings, owner: EmbeddedRedis) -> None:
    token = invite(settings, OPTIONS)
    os.kill(owner.pids[0], signal.SIGKILL)
    until(lambda: not is_open(token))


def test_nobody_is_invited_by_a_command_that_alone_keeps_the_servers(settings: Settings) -> None:
    with pytest.raises(DoorRefused, match=r"ends with this command.*start `distributed-comfy up`"):
        invite(settings, OPTIONS)


def test_the_plain_ports_stay_on_loopback(settings: Settings, owner: EmbeddedRedis) -> None:
    invite(settings, replace(OPTIONS, bind="127.0.0.2"))
    for url in (owner.state_url, owner.blob_url):
        parts = urlsplit(url)
        assert parts.hostname == "127.0.0.1"
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", parts.port or 0), 1.0)


def test_a_name_that_cannot_be_told_from_others_is_refused(settings: Settings, owner: EmbeddedRedis) -> None:
    invite(settings, OPTIONS)
    with owners_client(owner) as client:
        client.sadd(Keys("dc:")("workers"), "busy-cpu")
        client.set(Keys("dc:")("lease", "busy-cpu"), "x", px=60_000)
        refused = {"pc2": "it was already", "pc2-a": "could not be told", "PC 3": "'pc-3' would do", "busy": "worker busy-cpu lives"}
        for name, why in refused.items():
            with pytest.raises(HostNotInvitable, match=why):
                invite(settings, replace(OPTIONS, name=name))


def test_the_name_of_the_host_that_invites_is_refused(settings: Settings, owner: EmbeddedRedis) -> None:
    with pytest.raises(SettingInvalid, match="this host's own name"):
        invite(settings, replace(OPTIONS, name="master"))


def test_no_door_is_opened_for_a_host_that_cannot_be_invited(settings: Settings, owner: EmbeddedRedis) -> None:
    with pytest.raises(HostNotInvitable):
        invite(settings, replace(OPTIONS, name="Not A Name"))
    assert read_plan(owner.folder) is None


def test_hosts_without_a_name_get_numbers(settings: Settings, owner: EmbeddedRedis) -> None:
    tokens = [invite(settings, replace(OPTIONS, name="")) for _ in range(2)]
    assert [token.host for token in tokens] == ["host1", "host2"] and len({token.url for token in tokens}) == 1


def test_a_door_that_moves_says_whom_it_leaves_outside(settings: Settings, owner: EmbeddedRedis, caplog: pytest.LogCaptureFixture) -> None:
    before = invite(settings, OPTIONS)
    after = invite(settings, InviteOptions(name="pc3", bind="127.0.0.2", port=0))
    assert "hosts that were invited before must be invited again" in caplog.text
    until(lambda: not is_open(before) and is_open(after))


def test_a_worker_of_another_name_than_its_host_is_refused_before_anything_starts(settings: Settings, owner: EmbeddedRedis) -> None:
    token = invite(settings, OPTIONS)
    with pytest.raises(SettingInvalid, match="must be called pc2-something"), open_join(token.text, read_settings(worker_name="fast")):
        pass


def test_a_relay_that_is_not_there_is_named_and_its_token_not_kept(settings: Settings, home: Path) -> None:
    token = JoinToken("pc2", "wss://127.0.0.1:1/relay", "", "dc-host-pc2", "x", 1)
    with pytest.raises(RelayUnreachable, match=r"127\.0\.0\.1:1"), open_join(token.text, read_settings()):
        pass
    assert stored_token(read_settings()) == ""


def test_a_server_with_a_known_flaw_is_not_opened(settings: Settings, owner: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    with owners_client(owner) as client:
        version = str(client.info("server")["redis_version"])
    for name in ("read_package", "installed_package"):
        monkeypatch.setattr(inviting, name, lambda *_: None)  # a server that somebody compiled
    monkeypatch.setattr(
        "distributed_comfy.orchestrator.doctor.redis_version.FIXED", {"Redis": {(99, 0): (1, 1)}, "Valkey": {(99, 0): (1, 1)}}
    )
    with pytest.raises(DoorRefused, match=r"has the flaw CVE-2025-49844.*set DC_REDIS_ACCEPT"):
        invite(settings, OPTIONS)
    with owners_client(owner) as client:
        assert client.acl_users() == ["default"]
    accepted = settings.model_copy(update={"redis_accept": version})
    assert invite(accepted, OPTIONS).host == "pc2"


def test_a_user_that_a_server_forgot_is_made_again(settings: Settings, owner: EmbeddedRedis) -> None:
    with owners_client(owner) as client:
        invites = Invites(ServerUsers(client, "both", owner.state_url), None, "dc:")
        token = invites.create("pc2", Place("rediss://127.0.0.1:1/0", "rediss://127.0.0.1:1/0"), 60)
        client.acl_deluser("dc-host-pc2")
        assert [found.name for found in invites.all()] == ["pc2"]
        port = urlsplit(owner.state_url).port
        with redis.Redis(port=port or 0, username=token.user, password=token.secret) as host:
            assert host.ping()


def test_the_secret_is_written_down_nowhere_by_the_host_that_invites(
    settings: Settings, owner: EmbeddedRedis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    token = invite(settings, OPTIONS)
    with open_join(token.text, read_settings()):
        pass
    written = [path for path in (tmp_path / "runtime").rglob("*") if path.is_file() and token.secret.encode() in path.read_bytes()]
    assert written == [] and token.secret not in caplog.text and token.text not in caplog.text and token.secret not in repr(token)
    assert read_token(token.text).secret == token.secret


def test_a_blob_server_that_is_away_ends_nobody_who_reaps_and_the_invitation_goes_later(
    settings: Settings, owner: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = open_cluster(settings, owner.state_url, owner.blob_url)
    assert cluster.invites is not None
    cluster.invites.create("pc2", Place("rediss://127.0.0.1:1/0", "rediss://127.0.0.1:1/0"), 0.01)
    away = ServerUsers(redis.Redis(port=1, retry=None), "blobs", "redis://127.0.0.1:1/0")
    sick = replace(cluster, invites=Invites(ServerUsers(cluster.client, "state", owner.state_url), away, "dc:"))
    time.sleep(0.05)
    reap_once(sick, "sick")
    assert "the next tick tries again" in caplog.text
    reap_once(cluster, "well")
    assert cluster.client.acl_users() == ["default"] and not cluster.client.exists(Keys("dc:")("invites"))
    cluster.close()


def test_an_invited_host_runs_its_agent_and_workers_and_needs_its_token_once(
    settings: Settings, owner: EmbeddedRedis, tmp_path: Path
) -> None:
    token = invite(settings, OPTIONS)
    (tmp_path / "token").write_text(token.text)
    (tmp_path / "line").mkdir()
    line = CommandLine(tmp_path / "line", DC_DEVICE="cpu", DC_THREADS="1")
    line.environment.pop("XDG_CONFIG_HOME", None)
    with owners_client(owner) as client:
        for join in (["--join", f"@{tmp_path / 'token'}"], []):
            agent = line.start("up", "--engine", "builtin", *join)
            try:
                until(lambda: client.smembers(Keys("dc:")("workers")) == {"pc2-cpu"}, timeout_s=60)
                told = client.get(Keys("dc:")("host", "pc2"))
            finally:
                agent.terminate()
                done = line.finish(agent)
            assert told and done.status in (0, 143), done.err
            assert token.secret not in done.err
            until(lambda: not client.exists(Keys("dc:")("lease", "pc2-cpu")), timeout_s=30)
            client.delete(Keys("dc:")("workers"))
        denied = {entry["object"] for entry in client.acl_log()}
    assert denied <= {"dc:limits", "acl|users"}


def test_a_host_that_is_revoked_beside_other_commands_does_not_come_back(settings: Settings, owner: EmbeddedRedis) -> None:
    with owners_client(owner) as client, redis.Redis.from_url(owner.blob_url, decode_responses=True) as blobs:

        def invites() -> Invites:
            urls = (owner.state_url, owner.blob_url)
            servers = [ServerUsers(redis.Redis.from_url(url, decode_responses=True), "both", url) for url in urls]
            return Invites(servers[0], servers[1], "dc:")

        commands = [invites() for _ in range(4)]
        left = []
        for number in range(40):
            name = f"pc{number}"
            commands[0].create(name, Place("rediss://127.0.0.1:1/0", "rediss://127.0.0.1:1/0"), 60)
            together = threading.Barrier(len(commands))

            def list_all(command: Invites, together: threading.Barrier = together) -> None:
                together.wait()
                for _ in range(5):
                    command.all()

            def revoke_it(command: Invites, name: str = name, together: threading.Barrier = together) -> None:
                together.wait()
                command.all()
                with suppress(InviteUnknown):  # the other one was faster
                    command.revoke(name)
                command.all()

            deeds = [list_all, list_all, revoke_it, revoke_it]
            threads = [threading.Thread(target=deed, args=(command,)) for deed, command in zip(deeds, commands, strict=True)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            left += [user for server in (client, blobs) for user in server.acl_users() if user != "default"]
        assert left == [] and client.hgetall(Keys("dc:")("invites")) == {}


def test_a_host_that_was_half_shut_out_is_not_made_again(settings: Settings, owner: EmbeddedRedis) -> None:
    with owners_client(owner) as client:
        invites = Invites(ServerUsers(client, "both", owner.state_url), None, "dc:")
        invites.create("pc2", Place("rediss://127.0.0.1:1/0", "rediss://127.0.0.1:1/0"), 60)
        key = Keys("dc:")("invites")
        client.hset(key, "pc2", json.dumps({**json.loads(client.hget(key, "pc2")), "revoked": True}))
        client.acl_deluser("dc-host-pc2")
        assert [found.revoked for found in invites.all()] == [True] and client.acl_users() == ["default"]
        invites.revoke("pc2")
        assert invites.all() == []


def test_an_invitation_that_expires_while_nothing_but_the_door_lives_lets_nobody_in(settings: Settings, owner: EmbeddedRedis) -> None:
    token = invite(settings, replace(OPTIONS, expires_s=10.0))
    other = invite(settings, replace(OPTIONS, name="pc3", expires_s=3600.0, port=None))
    with open_join(other.text, read_settings()), owners_client(owner) as client:
        until(lambda: "dc-host-pc2" not in client.acl_users(), timeout_s=20)
        seconds, micros = client.time()
        assert 0 <= seconds * 1000 + micros / 1000 - token.expires_ms < 3000
        with pytest.raises(InviteRefused), open_join(token.text, read_settings()):
            pass


def test_a_host_that_came_after_its_invitation_had_expired_has_not_joined(settings: Settings, owner: EmbeddedRedis) -> None:
    with owners_client(owner) as client:
        invites = Invites(ServerUsers(client, "both", owner.state_url), None, "dc:")
        token = invites.create("pc2", Place("rediss://127.0.0.1:1/0", "rediss://127.0.0.1:1/0"), 0.0)
        late = token.expires_ms + 1
        client.set(Keys("dc:")("joined", "pc2"), f"{late}|{late}")
        assert invites.sweep() == ["pc2"] and client.acl_users() == ["default"]


def test_an_invitation_that_expires_while_only_the_relay_lives_lets_nobody_in(
    settings: Settings, owner: EmbeddedRedis, tmp_path: Path
) -> None:
    with served(tmp_path, DC_RUNTIME_DIR=str(tmp_path / "runtime"), HOME=str(tmp_path / "master")) as relay:
        token = invite(settings, InviteOptions(name="pc2", url=relay.join_url, expires_s=8.0))
        with owners_client(owner) as client:
            assert "dc-host-pc2" in client.acl_users()
            until(lambda: client.acl_users() == ["default"])
            seconds, micros = client.time()
            assert 0 <= seconds * 1000 + micros / 1000 - token.expires_ms < 3000
        with pytest.raises(InviteRefused), open_join(token.text, read_settings()):
            pass
