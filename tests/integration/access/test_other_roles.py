"""Users of masters and monitors, and the rules that `distributed-comfy redis acl` prints: each does its work and no more."""
from __future__ import annotations

from pathlib import Path

import pytest
import redis

from distributed_comfy.errors import RedisForbids
from distributed_comfy.orchestrator.metrics import ClusterReader
from distributed_comfy.orchestrator.servers import Servers as ClusterServers
from distributed_comfy.settings import read_settings
from distributed_comfy.state.keys import Keys
from tasks.app import make_app
from tasks.cluster import open_cluster
from tests.access_servers import PREFIX, Servers
from tests.cluster_rig import Rig
from tests.command_line import CommandLine, pictures

pytestmark = [pytest.mark.redis, pytest.mark.timeout(180)]

K = Keys(PREFIX)


@pytest.fixture(scope="module")
def cluster(rig: Rig, servers: Servers) -> Rig:
    """With one worker of an invited host, so that nobody but it and the user under test does anything."""
    user = "dc-host-pc2"
    rig.start("pc2-cpu", host="pc2", redis_url=servers.state.url_of(user), blob_url=servers.blobs.url_of(user))
    return rig


def line_as(folder: Path, settings: dict[str, str]) -> CommandLine:
    return CommandLine(folder, **{f"DC_{name.upper()}": value for name, value in settings.items()})


def test_a_master_submits_collects_and_steers(cluster: Rig, servers: Servers, tmp_path: Path) -> None:
    line = line_as(tmp_path, servers.put("dc-master", "master"))
    for server in servers.both:
        server.denials()
    done = line.run("run", line.write("prompt.json", pictures()), "--items", "3", "--out", "out")
    assert done.status == 0 and len(list((tmp_path / "out").glob("*.png"))) == 3, done.err
    drained = line.run("workers", "drain", "pc2-cpu")
    assert drained.status == 0, (drained.err, servers.state.denials())
    assert line.run("workers", "undrain", "pc2-cpu").status == 0
    assert [job["state"] for job in line.run("jobs", "list", "--json").json][-1] == "done"
    assert servers.blobs.denials() | servers.state.denials() <= {"command acl|users toplevel"}


@pytest.mark.parametrize(
    "command",
    [
        ["CONFIG", "GET", "dir"],
        ["ACL", "LIST"],
        ["FLUSHALL"],
        ["KEYS", "*"],
        ["SHUTDOWN"],
        ["HGETALL", K("invites")],
        ["SET", "other", "1"],
    ],
)
@pytest.mark.parametrize("role", ["master", "monitor"])
def test_neither_a_master_nor_a_monitor_is_the_servers_owner(servers: Servers, role: str, command: list[str]) -> None:
    servers.put(f"dc-{role}", role)  # type: ignore[arg-type]
    with servers.state.client(f"dc-{role}") as client, pytest.raises(redis.ResponseError, match="no permissions"):
        client.execute_command(*command)


def test_a_monitor_reads_all_figures_and_hears_celery(cluster: Rig, servers: Servers) -> None:
    given = servers.put("dc-monitor", "monitor")
    settings = read_settings(key_prefix=PREFIX)
    reader = ClusterReader(settings, ClusterServers(given["redis_url"], given["blob_url"], embedded=False))
    reading = reader.read()
    reader.close()
    assert reading.figures is not None and [worker.facts.name for worker in reading.workers] == ["pc2-cpu"]
    assert all(reading.memory.values())
    app = make_app(settings, given["redis_url"])
    assert app.control.ping(timeout=5.0, limit=1) == [{"pc2-cpu@pc2": {"ok": "pong"}}]
    heard: list[str] = []

    def hear(event: dict[str, str]) -> None:
        heard.append(event["hostname"])
        receiver.should_stop = True

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": hear})
        app.control.enable_events()
        receiver.capture(timeout=20)
    app.control.disable_events()
    app.close()
    assert heard and set(heard) == {"pc2-cpu@pc2"}


def test_a_monitor_changes_nothing(cluster: Rig, servers: Servers) -> None:
    given = servers.put("dc-monitor", "monitor")
    as_monitor = open_cluster(read_settings(key_prefix=PREFIX), given["redis_url"], given["blob_url"])
    with pytest.raises(RedisForbids):
        as_monitor.jobs.drain("pc2-cpu", True)
    as_monitor.close()
    with servers.state.client("dc-monitor") as client, pytest.raises(redis.ResponseError):
        client.hset(K("worker", "pc2-cpu"), "drained", 1)


def test_printed_rules_are_lines_of_an_aclfile_that_a_server_takes(servers: Servers, tmp_path: Path) -> None:
    line = line_as(tmp_path, {"redis_url": servers.state.url})
    for role in ("worker", "master", "monitor"):
        printed = line.run("redis", "acl", "--role", role, "--json").json
        assert printed["user"] == f"dc-{role}"
        for place, server in (("state", servers.state), ("blobs", servers.blobs)):
            path = server.folder / "users.acl"
            before = path.read_text()
            path.write_text(
                before + printed[place].replace(f"user dc-{role} ", f"user printed-{role} ").replace("PASSWORD", "secret") + "\n"
            )
            with server.client() as owner:
                owner.execute_command("ACL", "LOAD")
                with redis.Redis(port=server.port, username=f"printed-{role}", password="secret") as user:
                    assert user.ping()
                owner.acl_deluser(f"printed-{role}")
                owner.execute_command("ACL", "SAVE")


def test_applied_rules_make_a_user_with_a_password_of_its_own(servers: Servers, tmp_path: Path) -> None:
    line = line_as(tmp_path, {"redis_url": servers.state.url, "blob_url": servers.blobs.url})
    made = line.run("redis", "acl", "--host", "pc9", "--apply", "--json").json
    assert made["user"] == "dc-worker-pc9" and made["kept"] is True and len(made["password"]) >= 40
    for server in servers.both:
        with redis.Redis(port=server.port, username=made["user"], password=made["password"]) as user:
            assert user.ping()
            with pytest.raises(redis.ResponseError, match="no permissions"):
                user.set("dc:worker:pc8-cpu:lease", "x")
    assert line.run("redis", "acl", "--host", "pc9", "--apply").status == 0, "the same one gets another password"
    for overlapping, taken in (("pc9-a", "dc-worker-pc9"), ("pc2", "dc-host-pc2"), ("pc2-a", "dc-host-pc2")):
        refused = line.run("redis", "acl", "--host", overlapping, "--apply")
        assert refused.status == 2 and "could not be told from those" in refused.err and taken in refused.err, refused.err
        assert f"dc-worker-{overlapping}" not in servers.state.users().names()
    refused = line.run("redis", "acl", "--role", "master", "--host", "pc9")
    assert refused.status == 2 and "--host" in refused.err
