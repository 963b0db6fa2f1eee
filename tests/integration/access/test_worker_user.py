"""A worker under the user that `invite` makes: whole jobs run, a restart and a dead neighbour are borne, and nothing else is allowed."""
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import redis

from distributed_comfy.access.roles import BROKER_KEYS
from distributed_comfy.state.keys import Keys
from distributed_comfy.state.scripts import script_source
from tasks.app import make_app
from tests.access_servers import PREFIX, Server, Servers
from tests.cluster_rig import Rig, WorkerProcess
from tests.command_line import PROJECT, CommandLine, slow, until
from tests.integration.access.conftest import OTHER, WORKER
from tests.kept_jobs import keep, made, rule_images

pytestmark = [pytest.mark.redis, pytest.mark.timeout(180)]

K = Keys(PREFIX)
JOB = "0123456789ab"
EXPECTED = {"key dc:limits toplevel", "command acl|users toplevel"}
"""A worker tries whether it may set the limit of all jobs and see users, and leaves both to those who may."""


@pytest.fixture(scope="module")
def worker(rig: Rig, servers: Servers) -> WorkerProcess:
    (started,) = rig.start("pc2-cpu", **as_user(servers, "pc2"))
    return started


def as_user(servers: Servers, host: str) -> dict[str, str]:
    user = f"dc-host-{host}"
    return {"host": host, "redis_url": servers.state.url_of(user), "blob_url": servers.blobs.url_of(user)}


@pytest.fixture
def nothing_denied(servers: Servers) -> Iterator[None]:
    for server in servers.both:
        server.denials()
    yield
    assert servers.state.denials() <= EXPECTED and servers.blobs.denials() == set()


def test_a_whole_job_runs_and_its_images_are_right(rig: Rig, servers: Servers, worker: WorkerProcess, nothing_denied: None) -> None:
    report = rig.run(rule_images(), items=3)
    assert [numpy.array_equal(batch, made(index)) for index, batch in enumerate(report.batches("collect"))] == [True] * 3
    assert {state.worker for state in rig.cluster.jobs.item_states(report.job_id).values()} == {"pc2-cpu"}


def test_an_upscale_runs_and_is_what_an_unrestricted_worker_makes(
    rig: Rig, servers: Servers, worker: WorkerProcess, nothing_denied: None
) -> None:
    prompt = json.loads((PROJECT / "examples" / "upscale_seeded.json").read_text())
    restricted = pictures_of(rig, prompt)
    rig.cluster.jobs.drain("pc2-cpu", True)
    try:
        rig.start("free-cpu", host="free")
        assert pictures_of(rig, prompt) == restricted
    finally:
        rig.stop("free-cpu")
        rig.cluster.jobs.drain("pc2-cpu", False)


def pictures_of(rig: Rig, prompt: Any) -> dict[str, bytes]:
    report = rig.run(prompt)
    found = {re.sub(r"_\d+_", "", file.path.name): file.path.read_bytes() for file in report.done.files}
    assert len(found) == 2
    return {name: content[-4000:] for name, content in found.items()}  # the pixels; what a PNG says of its job differs


def test_a_worker_answers_pings_and_shows_itself_to_monitors(rig: Rig, worker: WorkerProcess, nothing_denied: None) -> None:
    answers = rig.cluster.app.control.ping(timeout=5.0, limit=1)
    assert answers == [{"pc2-cpu@pc2": {"ok": "pong"}}]


def test_no_key_of_the_broker_is_without_a_decision(rig: Rig, servers: Servers, worker: WorkerProcess) -> None:
    rig.cluster.app.control.ping(timeout=5.0, limit=1)
    begin = f"{PREFIX}celery:"
    found = {key.removeprefix(begin) for key in servers.state.client().scan_iter(f"{begin}*")}
    forms = [re.escape(name).replace(re.escape("{}"), ".*") for name in BROKER_KEYS]
    assert found and [key for key in found if not any(re.fullmatch(form, key) for form in forms)] == []


REFUSED = {
    "configuration": ["CONFIG", "GET", "dir"],
    "configuration changed": ["CONFIG", "SET", "dir", "/tmp"],
    "users listed": ["ACL", "LIST"],
    "a user made": ["ACL", "SETUSER", "intruder", "on", "nopass", "~*", "+@all"],
    "its own rules widened": ["ACL", "SETUSER", WORKER, "~*", "+@all"],
    "a user removed": ["ACL", "DELUSER", OTHER],
    "shutdown": ["SHUTDOWN", "NOSAVE"],
    "everything emptied": ["FLUSHALL"],
    "a database emptied": ["FLUSHDB"],
    "scripts forgotten": ["SCRIPT", "FLUSH"],
    "scripts killed": ["SCRIPT", "KILL"],
    "functions": ["FUNCTION", "LOAD", "#!lua name=x\nredis.register_function('f', function() return 1 end)"],
    "debugging": ["DEBUG", "SLEEP", "0"],
    "modules": ["MODULE", "LIST"],
    "replication": ["REPLICAOF", "127.0.0.1", "1"],
    "a replica's stream": ["PSYNC", "?", "-1"],
    "all keys": ["KEYS", "*"],
    "all keys, bit by bit": ["SCAN", "0"],
    "everybody's commands": ["MONITOR"],
    "a snapshot": ["SAVE"],
    "a snapshot in the background": ["BGSAVE"],
    "the file rewritten": ["BGREWRITEAOF"],
    "connections listed": ["CLIENT", "LIST"],
    "connections killed": ["CLIENT", "KILL", "USER", "default"],
    "the server paused": ["CLIENT", "PAUSE", "1000"],
    "the slow log": ["SLOWLOG", "GET"],
    "databases swapped": ["SWAPDB", "0", "1"],
    "keys moved out": ["MIGRATE", "127.0.0.1", "1", "k", "0", "10"],
    "raw values": ["RESTORE", "dc:work", "0", "x"],
    "invitations read": ["HGETALL", K("invites")],
    "invitations written": ["HSET", K("invites"), "pc4", "{}"],
    "another host joined": ["SET", K("joined", "pc3"), "1|1"],
    "another worker's lease": ["SET", K("lease", "pc3-cpu"), "x"],
    "another worker's lease ended": ["DEL", K("lease", "pc3-cpu")],
    "a ticket taken from another's queue": ["BRPOP", "dc:celery:gpu.pc3-cpu", "1"],
    "another's queue read": ["LRANGE", "dc:celery:gpu.pc3-cpu", "0", "-1"],
    "another worker told to end": ["PUBLISH", K("steering", "pc3-cpu"), "end"],
    "orders to a host": ["LPUSH", "dc:celery:host.pc3", "{}"],
    "orders to another host taken": ["BRPOP", "dc:celery:host.pc3", "1"],
    "another host's record": ["SET", "dc:host:pc3", "{}"],
    "an answer of another host": ["SET", "dc:host:pc3:answer:x", "{}"],
    "another worker's status": ["SET", K("status", "pc3-cpu"), "{}"],
    "another worker's log read": ["XREVRANGE", K("log", "pc3-cpu"), "+", "-"],
    "a prompt swapped": ["HSET", K("prompts", JOB), "hash", "{}"],
    "an item's spec swapped": ["HSET", K("spec", JOB), "0", "{}"],
    "a job submitted": ["INCR", K("sequence")],
    "the limit of all jobs": ["HSET", K("limits"), "all", "1"],
    "a key of another prefix": ["GET", "other:key"],
    "a key of another prefix written": ["SET", "dcx", "1"],
    "a broadcast to all workers": ["PUBLISH", "dc:celery:/0.celery.pidbox", "{}"],
    "another channel": ["PUBLISH", "anything", "x"],
    "everything that is published": ["PSUBSCRIBE", "*"],
    "other hosts' events": ["PSUBSCRIBE", "dc:celery:/0.celeryev/*"],
    "a blob among the state": ["SET", f"dc:blob:{JOB}:0:c:value0:0", "x"],
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_worker_is_refused(servers: Servers, what: str) -> None:
    assert_refused(servers.state, REFUSED[what])


NEAR_A_JOB = (
    f"dc:job:{JOB}:", f"dc:job:{JOB}:secret-suffix", f"dc:job:{JOB}x", f"dc:job:{JOB[:-1]}", "dc:job:", f"dc:job:{JOB}:result:more",
    f"dc:job:{JOB}x:result", f"dc:job:{JOB[:-1]}:result", f"dc:job:x:{JOB}", f"dc:jobs:{JOB}",
)  # fmt: skip


@pytest.mark.parametrize("key", NEAR_A_JOB)
def test_the_pattern_of_a_jobs_keys_takes_in_no_longer_and_no_shorter_ones(servers: Servers, key: str) -> None:
    assert_refused(servers.state, ["HGETALL", key])
    assert_refused(servers.state, ["HSET", key, "x", "1"])
    with servers.state.client(WORKER) as client:
        assert client.hgetall(f"dc:job:{JOB}") == client.hgetall(f"dc:job:{JOB}:result") == {}


BLOBS_REFUSED = {
    "configuration": ["CONFIG", "GET", "dir"], "everything emptied": ["FLUSHALL"], "all keys": ["KEYS", "*"],
    "scripts": ["EVAL", "return 1", "0"], "users": ["ACL", "LIST"], "another name": ["SET", "dc:blob:x:0", "x"],
    "an input file changed": ["SET", f"dc:blob:{JOB}/input/0:0", "x"], "a key of the table": ["HGETALL", K("job", JOB)],
    "channels": ["PUBLISH", "dc:orders:pc3-cpu", "free"],
}  # fmt: skip


@pytest.mark.parametrize("what", BLOBS_REFUSED)
def test_a_worker_is_refused_at_the_blob_server(servers: Servers, what: str) -> None:
    assert_refused(servers.blobs, BLOBS_REFUSED[what])


def assert_refused(server: Server, command: list[str]) -> None:
    with server.client(WORKER) as client, pytest.raises(redis.ResponseError, match=r"no permissions|NOPERM"):
        client.execute_command(*command)
    with server.client() as owner:
        assert owner.ping() and "intruder" not in owner.acl_users()


@pytest.mark.parametrize(
    "body",
    ["return redis.call('HGETALL', 'dc:invites')", "return redis.call('CONFIG', 'GET', 'dir')", "return redis.call('SET', 'dcx', '1')",
     "return redis.call('PUBLISH', 'dc:celery:/0.celery.pidbox', '{}')", "return redis.call('PUBLISH', 'dc:steering:pc3-cpu', 'end')",
     "return redis.call('LRANGE', 'dc:celery:gpu.pc3-cpu', 0, -1)"],
)  # fmt: skip
def test_a_script_of_its_own_gives_a_worker_no_more(servers: Servers, body: str) -> None:
    with (
        servers.state.client(WORKER) as client,
        pytest.raises(redis.ResponseError, match=r"user executing the script can't|not allowed from script"),
    ):
        client.eval(body, 0)


def test_celerys_broadcast_of_a_shutdown_is_refused_and_all_workers_live_on(rig: Rig, servers: Servers, worker: WorkerProcess) -> None:
    app = make_app(rig.cluster.settings, servers.state.url_of(OTHER))
    with pytest.raises(Exception, match="no permissions"), app.connection_for_write() as connection:
        app.control.broadcast("shutdown", connection=connection)
    app.close()
    assert servers.state.denials() & {"channel dc:celery:/0.celery.pidbox toplevel", "key dc:celery:_kombu.binding.celery.pidbox multi"}
    assert rig.run(rule_images(), items=1).batches("collect") and worker.process.poll() is None


def test_a_ticket_for_another_host_is_all_that_may_be_put_into_its_queue(servers: Servers) -> None:
    with servers.state.client(WORKER) as client:
        assert client.lpush("dc:celery:gpu.pc3-nobody", "{}") == 1
        client.delete("dc:celery:gpu.pc3-nobody")


def test_a_job_is_finished_after_a_restart_of_the_server_without_a_master(rig: Rig, servers: Servers, worker: WorkerProcess) -> None:
    """No script is in the server's memory then, and nobody but the worker can load them."""
    job_id = keep(rig, rule_images(milliseconds=1000), items=3)
    until(lambda: servers.state.client().hlen(K("claims", "pc2-cpu")) == 1)
    servers.state.stop()
    servers.state.start()
    assert servers.state.client().script_exists(*(sha(name) for name in ("claim", "complete", "renew"))) == [False] * 3
    with servers.state.client() as looker:  # nobody of ours with more rights does anything
        until(lambda: looker.hget(K("job", job_id), "state") == "done", timeout_s=60)
    assert servers.state.client().script_exists(sha("claim")) == [True]
    assert servers.state.denials() <= EXPECTED


def sha(name: str) -> str:
    return hashlib.sha1(script_source(name, PREFIX).encode()).hexdigest()


def test_a_worker_takes_over_what_a_killed_host_had_and_clears_up_after_it(rig: Rig, servers: Servers, worker: WorkerProcess) -> None:
    (victim,) = rig.start("pc3-cpu", **as_user(servers, "pc3"))
    rig.cluster.jobs.drain("pc2-cpu", True)
    job_id = keep(rig, rule_images(milliseconds=1500), items=2)
    until(lambda: servers.state.client().hlen(K("claims", "pc3-cpu")) == 1)
    for server in servers.both:
        server.denials()
    victim.kill()
    rig.workers.pop("pc3-cpu")
    rig.cluster.jobs.drain("pc2-cpu", False)
    with servers.state.client() as looker:
        until(lambda: looker.hget(K("job", job_id), "state") == "done", timeout_s=60)
        until(lambda: looker.smembers(K("workers")) == {"pc2-cpu"})
        assert not [key for key in looker.scan_iter("*pc3-cpu*") if "pidbox" not in key and not key.endswith(("barred", ":log"))]
    assert servers.state.denials() <= EXPECTED and servers.blobs.denials() == set()


def test_a_worker_that_is_not_called_after_its_host_is_told_so(servers: Servers, tmp_path: Path) -> None:
    line = CommandLine(tmp_path, **{f"DC_{name.upper()}": value for name, value in as_user(servers, "pc2").items()})
    done = line.run("worker", "--engine", "builtin", "--device", "cpu", "--name", "fast")
    assert done.status == 3 and "names begin with its own" in done.err and "Traceback" not in done.err


def test_jobs_are_not_for_a_workers_user(servers: Servers, tmp_path: Path) -> None:
    line = CommandLine(tmp_path, **{f"DC_{name.upper()}": value for name, value in as_user(servers, "pc2").items()})
    done = line.run("run", line.write("prompt.json", slow(0)), "--items", "1")
    assert done.status == 3 and "run this on the host that invited it" in done.err and "Traceback" not in done.err


def test_a_server_that_loses_its_users_keeps_its_workers_and_one_that_was_shut_out_ends(
    rig: Rig, servers: Servers, worker: WorkerProcess
) -> None:
    servers.put("dc-host-pc4", "worker", "pc4")
    (guest,) = rig.start("pc4-cpu", **as_user(servers, "pc4"), refused_ttl_s=5)
    remove_user(servers, "dc-host-pc4")
    until(lambda: "does not know the user of host pc4" in guest.log())
    servers.put("dc-host-pc4", "worker", "pc4")
    until(lambda: "the cluster lets host pc4 in again" in guest.log())
    rig.cluster.jobs.drain("pc2-cpu", True)
    try:
        job_id = keep(rig, rule_images(milliseconds=1500), items=2)
        until(lambda: servers.state.client().hlen(K("claims", "pc4-cpu")) == 1, timeout_s=60)
        remove_user(servers, "dc-host-pc4")
    finally:
        rig.cluster.jobs.drain("pc2-cpu", False)
    with servers.state.client() as looker:
        until(lambda: looker.hget(K("job", job_id), "state") == "done", timeout_s=60)
    assert rig.workers.pop("pc4-cpu").process.wait(60) == 4, guest.log()
    assert "`distributed-comfy invite --name pc4`" in guest.log() and "is DC_REDIS_URL right" not in guest.log()
    assert guest.log().count("Cannot connect") <= 2, guest.log()


def remove_user(servers: Servers, user: str) -> None:
    for server in servers.both:
        server.users().remove(user)
