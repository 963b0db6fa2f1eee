"""An invited host that wants others to do as it says: it forges orders, claims their workers, and damages what all read.

Beside it are a worker and an agent with all rights, which are what it is after.
"""
from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from distributed_comfy.errors import HostNotInvitable, OrderRefused
from distributed_comfy.host_messages import HostOrder, sign_order
from distributed_comfy.messages import dump
from distributed_comfy.settings import read_settings
from distributed_comfy.state.keys import Keys
from distributed_comfy.state.records import HostRecord, HostWorker
from tasks.app import host_queue, make_app
from tasks.cluster import Cluster, open_cluster
from tasks.host_orders import order_for, post_order, send_order
from tests.access_servers import PREFIX, Servers
from tests.agent_process import HOST, AgentProcess
from tests.cluster_rig import Rig, WorkerProcess
from tests.command_line import PROJECT, CommandLine, until
from tests.integration.access.conftest import WORKER
from tests.kept_jobs import keep, made, rule_images

pytestmark = [pytest.mark.redis, pytest.mark.timeout(180)]

K = Keys(PREFIX)
UNACKED, INDEX = f"{PREFIX}celery:unacked", f"{PREFIX}celery:unacked_index"
LONG_AGO = 1.0


@pytest.fixture(scope="module")
def agent(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """The agent of the owner's own host, with all rights, which lets others configure its workers."""
    folder = tmp_path_factory.mktemp("agent")
    line = CommandLine(folder, DC_REDIS_URL=servers.state.url, DC_BLOB_URL=servers.blobs.url, DC_THREADS="1")
    found = AgentProcess(line, servers.state.url, servers.blobs.url)
    found.write(workers={"pc1-cpu": {"device": "cpu"}})
    process = found.start("--remote-configuration")
    try:
        found.wait("pc1-cpu", "running")
        yield found
        found.end(process)
    finally:
        found.close()


@pytest.fixture
def intruder(servers: Servers) -> Iterator[Any]:
    """A connection of the invited host pc2."""
    with servers.state.client(WORKER) as client:
        yield client


def task_of(order: HostOrder, queue: str) -> dict[str, Any]:
    """What kombu puts into a queue for it."""
    body = json.dumps([[dump(order)], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    task = str(uuid.uuid4())
    return {
        "body": base64.b64encode(body.encode()).decode(), "content-encoding": "utf-8", "content-type": "application/json",
        "headers": {"lang": "py", "task": "tasks.host_order", "id": task, "root_id": task, "parent_id": None, "group": None, "retries": 0,
                    "timelimit": [None, None], "eta": None, "expires": None, "shadow": None, "ignore_result": True, "argsrepr": "",
                    "kwargsrepr": "", "origin": "pc2"},
        "properties": {"correlation_id": task, "reply_to": task, "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
                       "delivery_tag": str(uuid.uuid4()), "delivery_info": {"exchange": "", "routing_key": queue}},
    }  # fmt: skip


def record_of_agent(agent: AgentProcess) -> HostRecord:
    """Its host's."""
    record = agent.host()
    assert record is not None
    return record


def program_of(folder: Path) -> tuple[Path, HostOrder]:
    """A file that appears where an order to start a program of the intruder's choice is obeyed, and that order."""
    ran, program, tree = folder / "ran", folder / "evil.sh", folder / "tree"
    program.write_text(f"#!/bin/sh\ntouch {ran}\nexit 1\n")
    program.chmod(0o755)
    for name in ("main.py", "nodes.py", "execution.py"):
        tree.mkdir(exist_ok=True)
        (tree / name).touch()
    fields = {"device": "cpu", "engine": "comfyui", "comfyui_path": str(tree), "comfyui_python": str(program), "enabled": True}
    return ran, replace(order_for("add", f"{HOST}-evil", fields=fields), valid_until_ms=2**53)


def plant(client: Any, message: str) -> None:
    """What the reviewer's attack wrote, where this user may: a message that another consumer would put into a queue."""
    tag = str(uuid.uuid4())
    client.hset(UNACKED, tag, message)
    client.zadd(INDEX, {tag: LONG_AGO})


def restart_consumer_of(rig: Rig, name: str) -> None:
    """A consumer with all rights looks at what was never acknowledged when it starts."""
    rig.start(name)
    assert rig.run(rule_images(), items=1).done.error is None
    rig.stop(name)


# -- orders to other hosts ----------------------------------------------------------------------------------------------
def test_an_invited_host_cannot_write_where_consumers_would_take_orders_from(servers: Servers, intruder: Any, tmp_path: Path) -> None:
    message = json.dumps([task_of(program_of(tmp_path)[1], f"host.{HOST}"), "", f"host.{HOST}"])
    with pytest.raises(redis.exceptions.NoPermissionError):
        plant(intruder, message)
    for command in (["HGETALL", UNACKED], ["HSCAN", UNACKED, "0"], ["ZRANGE", INDEX, "0", "-1"], ["ZADD", INDEX, "1", "tag"]):
        with pytest.raises(redis.exceptions.NoPermissionError):
            intruder.execute_command(*command)


def test_an_order_that_lies_among_unacknowledged_messages_reaches_no_host(
    rig: Rig, servers: Servers, agent: AgentProcess, tmp_path: Path
) -> None:
    """Whoever wrote it there: this one has all rights."""
    ran, order = program_of(tmp_path)
    with servers.state.client() as owner:
        plant(owner, json.dumps([task_of(order, f"host.{HOST}"), "", f"host.{HOST}"]))
        restart_consumer_of(rig, "witness-cpu")
        time.sleep(11.0)  # kombu's interval
        assert owner.hlen(UNACKED) == owner.zcard(INDEX) == 1, "nobody has touched it"
        owner.delete(UNACKED, INDEX)
    assert not ran.exists() and agent.worker(f"{HOST}-evil") is None and f"{HOST}-evil" not in agent.written()["workers"]


def test_an_agent_obeys_nobody_who_does_not_know_its_seal(agent: AgentProcess, intruder: Any, tmp_path: Path) -> None:
    """Should an order come into its queue all the same."""
    ran, order = program_of(tmp_path)
    with pytest.raises(redis.exceptions.NoPermissionError):
        intruder.get(K("seal", HOST))
    with pytest.raises(redis.exceptions.NoPermissionError):
        intruder.set(K("seal", HOST), "0" * 64)
    with pytest.raises(redis.exceptions.NoPermissionError):
        intruder.lpush(f"{PREFIX}celery:{host_queue(HOST).name}", "{}")
    for number, secret in enumerate(("", "guess", "0" * 64)):
        forged = replace(order, order_id=f"forged{number}")
        post_order(agent.cluster, HOST, sign_order(forged, secret) if secret else forged)
        answer = agent.cluster.hosts.wait_answer(HOST, forged.order_id, 30)
        assert answer.error is not None and "is not signed with the seal of host pc1" in answer.error["fields"]["reason"]
    assert not ran.exists() and agent.worker(f"{HOST}-evil") is None
    seal = agent.cluster.hosts.seal(record_of_agent(agent))
    assert len(seal) == 64 and seal not in agent.said()
    changed = replace(sign_order(replace(order, order_id="changed"), seal), verb="stop", worker="pc1-cpu")
    post_order(agent.cluster, HOST, changed)
    assert agent.cluster.hosts.wait_answer(HOST, "changed", 30).error is not None, "a signature is for one order"
    assert send_order(agent.cluster, HOST, order_for("config")).facts["host"] == HOST


def test_the_orders_of_one_host_are_read_by_no_other(rig: Rig, servers: Servers, agent: AgentProcess, intruder: Any) -> None:
    """Not even while the agent is at work on one."""
    seen: set[str] = set()
    watch = time.monotonic() + 4.0
    sent = 0
    while time.monotonic() < watch:
        send_order(agent.cluster, HOST, order_for("edit", "pc1-cpu", fields={"environment": {"CANARY": f"canary-secret-{sent}"}}))
        sent += 1
        with servers.state.client() as owner:
            seen |= {str(owner.hgetall(UNACKED)), str(owner.exists(UNACKED))}
    assert sent and seen == {"{}", "0"}
    for command in (["LRANGE", f"{PREFIX}celery:host.{HOST}", "0", "-1"], ["GET", K("host", HOST)], ["GET", K("answer", HOST, "x")]):
        with pytest.raises(redis.exceptions.NoPermissionError):
            intruder.execute_command(*command)


# -- orders to workers --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def victim(rig: Rig) -> WorkerProcess:
    """A worker with all rights."""
    (worker,) = rig.start("victim-cpu")
    return worker


def test_a_workers_channel_for_cancellations_takes_no_other_orders(rig: Rig, victim: WorkerProcess, intruder: Any) -> None:
    rig.cluster.jobs.drain("pc1-cpu", True)
    told = victim.log().count("describ")
    for order in ("end", "free", "look", "end now", "cancel", "cancel x"):
        assert intruder.publish(K("orders", "victim-cpu"), order) == 1, "it hears it"
    time.sleep(1.0)
    assert victim.process.poll() is None and "ends: no new items" not in victim.log() and victim.log().count("describ") == told
    assert (rig.run(rule_images(), items=1).batches("collect")[0] == made(0)).all()


def test_an_item_is_not_interrupted_by_a_message_alone(rig: Rig, servers: Servers, victim: WorkerProcess, intruder: Any) -> None:
    job_id = keep(rig, rule_images(milliseconds=3000), items=1)
    with servers.state.client() as owner:
        (claim,) = until(lambda: owner.hkeys(K("claims", "victim-cpu")))
        time.sleep(0.5)
        assert intruder.publish(K("orders", "victim-cpu"), f"cancel {claim}") == 1
        until(lambda: owner.hget(K("job", job_id), "state") == "done", timeout_s=30)
    assert "was cancelled" not in victim.log() and len(rig.executions(job_id)) == 1
    rig.cluster.jobs.drain("pc1-cpu", False)


# -- records that all read ----------------------------------------------------------------------------------------------
def invited(cluster: Cluster) -> Cluster:
    """With pc2 among the invitations, as `invite` and `up --join` write them."""
    record = {"name": "pc2", "created_ms": 5, "expires_ms": 9, "url": "rediss://x:1/0", "secret_hash": "0" * 64}
    cluster.client.set(K("joined", "pc2"), "6|7")  # first: it would have expired otherwise, and reapers are about
    cluster.client.hset(K("invites"), "pc2", json.dumps(record))
    return cluster


@pytest.fixture
def cluster(rig: Rig) -> Iterator[Cluster]:
    """The master's, which has invited pc2."""
    yield invited(rig.cluster)
    rig.cluster.client.delete(K("invites"))
    rig.cluster.client.delete(K("joined", "pc2"), K("host", "pc2"))
    rig.cluster.client.srem(K("hosts"), "pc2")
    rig.cluster.client.srem(K("workers"), "pc2-old", "pc2-odd")
    rig.cluster.client.delete(*(K(name, worker) for name in ("worker", "lease") for worker in ("pc2-old", "pc2-odd")))


def record_of(*workers: str, host: str = "pc2") -> str:
    return dump(HostRecord(host, "me", 1, "i", workers=tuple(HostWorker(name, "running", "cpu") for name in workers)))


def test_what_an_invited_host_says_of_the_workers_of_others_is_left_out(
    cluster: Cluster, agent: AgentProcess, intruder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    intruder.set(K("host", "pc2"), record_of("pc2-cpu", "pc1-cpu", "fast"))
    intruder.sadd(K("hosts"), "pc2")
    for _ in range(2):
        (found,) = [record for record in cluster.hosts.hosts() if record.host == "pc2"]
    assert [worker.name for worker in found.workers] == ["pc2-cpu"]
    assert caplog.text.count("what host pc2 says of") == 1 and "invited for workers called pc2-something" in caplog.text
    done = agent.line.run("workers", "edit", "pc1-cpu", "--env", "HF_TOKEN=canary-token", "--json")
    assert done.status == 0 and json.loads(done.out)["host"] == HOST
    with pytest.raises(redis.ResponseError):
        intruder.lrange(f"{PREFIX}celery:host.{HOST}", 0, -1)
    assert intruder.llen(f"{PREFIX}celery:host.pc2") == 0, "the order went to the host that has the worker"


def test_a_master_that_may_not_invite_believes_invited_hosts_no_more(
    cluster: Cluster, servers: Servers, agent: AgentProcess, intruder: Any
) -> None:
    """It knows their names, and nothing else of the invitations."""
    intruder.set(K("host", "pc2"), record_of("pc2-cpu", "pc1-cpu"))
    intruder.sadd(K("hosts"), "pc2")
    servers.put("dc-master", "master")
    theirs = open_cluster(cluster.settings, servers.state.url_of("dc-master"), servers.blobs.url_of("dc-master"))
    try:
        assert theirs.invites is None
        (found,) = [record for record in theirs.hosts.hosts() if record.host == "pc2"]
        assert [worker.name for worker in found.workers] == ["pc2-cpu"]
        assert send_order(theirs, HOST, order_for("config")).facts["host"] == HOST, "and its orders are obeyed"
        for command in (["HGETALL", K("invites")], ["HGET", K("invites"), "pc2"], ["HVALS", K("invites")], ["DEL", K("invites")]):
            with pytest.raises(redis.exceptions.NoPermissionError):
                theirs.client.execute_command(*command)
    finally:
        theirs.close()


def test_a_host_that_says_that_it_is_another_is_left_out(cluster: Cluster, intruder: Any) -> None:
    intruder.set(K("host", "pc2"), record_of("pc1-cpu", host=HOST))
    intruder.sadd(K("hosts"), "pc2")
    assert cluster.hosts.host("pc2") is None
    assert [record.pid for record in cluster.hosts.hosts() if record.host == HOST] != [1]


DAMAGED_HOSTS = {"another version": '{"version": 99}', "no JSON": "|||", "nothing": "", "a list": "[]"}


@pytest.mark.parametrize("what", DAMAGED_HOSTS)
def test_a_record_of_a_host_that_cannot_be_read_hides_that_host_alone(
    cluster: Cluster, agent: AgentProcess, intruder: Any, what: str
) -> None:
    intruder.set(K("host", "pc2"), DAMAGED_HOSTS[what])
    intruder.sadd(K("hosts"), "pc2")
    assert [record.host for record in cluster.hosts.hosts()] == [HOST] and cluster.hosts.host("pc2") is None
    assert cluster.client.sismember(K("hosts"), "pc2") or not DAMAGED_HOSTS[what]
    for command in (["workers", "list"], ["hosts", "list"]):
        done = agent.line.run(*command, "--json")
        assert done.status == 0 and HOST in done.out and "Traceback" not in done.err, done.err
        assert not DAMAGED_HOSTS[what] or done.err.count("host pc2 is left out") <= 1, done.err


def test_a_record_of_another_type_hides_its_host_alone(cluster: Cluster, agent: AgentProcess, intruder: Any) -> None:
    intruder.delete(K("host", "pc2"))
    intruder.rpush(K("host", "pc2"), "x")
    intruder.sadd(K("hosts"), "pc2")
    assert [record.host for record in cluster.hosts.hosts()] == [HOST] and cluster.hosts.host("pc2") is None


@pytest.mark.parametrize("facts", ['{"version": 99}', "|||", '{"name": "pc1-cpu", "host": "pc2", "device": "cpu", "engine": "x"}'])
def test_a_worker_whose_record_cannot_be_read_hides_itself_alone(
    cluster: Cluster, agent: AgentProcess, intruder: Any, caplog: pytest.LogCaptureFixture, facts: str
) -> None:
    intruder.hset(K("worker", "pc2-old"), "facts", facts)
    intruder.hset(K("worker", "pc2-odd"), mapping={"facts": dump_facts(agent, "pc2-odd"), "tickets": "many"})
    for name in ("pc2-old", "pc2-odd"):
        intruder.set(K("lease", name), "i", px=20_000)
        intruder.sadd(K("workers"), name)
    cluster.client.hset(K("caps"), "oldcap", '{"version": 99}')
    try:
        for _ in range(2):
            names = {worker.facts.name for worker in cluster.workers.workers()}
        assert "pc1-cpu" in names and not names & {"pc2-old", "pc2-odd"}
        assert caplog.text.count("worker pc2-odd is left out") <= 1
        assert "oldcap" not in cluster.matching.capabilities()
        done = agent.line.run("workers", "list", "--json")
        assert done.status == 0 and "pc1-cpu" in done.out and "Traceback" not in done.err, done.err
    finally:
        cluster.client.hdel(K("caps"), "oldcap")


def dump_facts(agent: AgentProcess, name: str) -> str:
    """Facts of a worker of this version."""
    facts = json.loads(agent.cluster.client.hget(K("worker", "pc1-cpu"), "facts") or "")
    return json.dumps({**facts, "name": name})


@pytest.mark.parametrize("value", ["|||", "1", "-1|-1", "9" * 5000 + "|1", "x|y", "", "\x00", "1|" + "9" * 15, "١|٢"])
def test_whatever_a_host_writes_about_its_coming_stops_nobody(
    cluster: Cluster, agent: AgentProcess, intruder: Any, value: str
) -> None:
    """Seen: three bars ended every worker that reaps, and each command about invitations."""
    intruder.set(K("joined", "pc2"), value)
    assert cluster.invites is not None
    (found,) = cluster.invites.all()
    assert (found.joined_ms, found.seen_ms) == (5, 5), "what cannot be read says no more than that it came"
    assert cluster.invites.sweep() == []
    done = agent.line.run("invite", "list", "--json")
    assert done.status == 0 and "Traceback" not in done.err, done.err


def test_a_note_of_another_type_about_its_coming_stops_nobody(cluster: Cluster, intruder: Any) -> None:
    with intruder.pipeline(transaction=True) as at_once:  # an agent that looks in between takes the invitation for one that nobody used
        at_once.delete(K("joined", "pc2")).rpush(K("joined", "pc2"), "x").execute()
    assert cluster.invites is not None and [invite.joined_ms for invite in cluster.invites.all()] == [5]


def test_a_host_that_is_shut_out_leaves_nothing_that_would_hold_its_place(cluster: Cluster, servers: Servers, intruder: Any) -> None:
    """It may have written its signs of life to last for ever."""
    intruder.set(K("host", "pc2"), record_of("pc2-cpu"))
    intruder.set(K("seal", "pc2"), "0" * 64)
    intruder.sadd(K("hosts"), "pc2")
    intruder.set(K("lease", "pc2-cpu"), "i")
    intruder.set(K("status", "pc2-cpu"), "{}")
    cluster.client.lpush(f"{PREFIX}celery:host.pc2", "an order with a secret")
    assert cluster.invites is not None
    try:
        cluster.invites.revoke("pc2")
        assert not [key for key in cluster.client.scan_iter("*pc2*") if "pidbox" not in key]
        assert not cluster.client.sismember(K("hosts"), "pc2")
        cluster.invites.check_name("pc2")
    finally:
        servers.put(WORKER, "worker", "pc2")


def test_an_order_that_finds_the_seal_of_the_agent_before_waits_for_the_right_one(servers: Servers, agent: AgentProcess) -> None:
    """The record is there a moment before the seal, and a killed agent's seal outlives its record."""
    with servers.state.client() as owner:
        for before in ("0" * 32 + " " + "0" * 64, ""):
            if before:
                owner.set(K("seal", HOST), before, px=60_000)
            else:
                owner.delete(K("seal", HOST))
            assert send_order(agent.cluster, HOST, order_for("config")).facts["host"] == HOST


def test_nobody_is_invited_under_the_name_of_a_living_agent(cluster: Cluster) -> None:
    """Also while it has no worker."""
    assert cluster.invites is not None
    for name in ("far", "far-away", "far-away-too"):
        cluster.client.set(K("host", "far-away"), record_of(host="far-away"))
        cluster.client.sadd(K("hosts"), "far-away")
        with pytest.raises(HostNotInvitable, match="host 'far-away', whose agent lives"):
            cluster.invites.check_name(name)
        cluster.client.delete(K("host", "far-away"))
        cluster.invites.check_name(name)


# -- other databases ----------------------------------------------------------------------------------------------------
def test_a_cluster_of_the_same_prefix_in_another_database_is_closed_to_an_invited_host(servers: Servers) -> None:
    for server in servers.both:
        with server.client(WORKER) as client:
            for command in (["SELECT", "1"], ["SWAPDB", "0", "1"], ["MOVE", K("hosts"), "1"], ["COPY", K("hosts"), K("hosts"), "DB", "1"]):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command)
            assert client.execute_command("SELECT", "0")
    with servers.state.client(WORKER) as client, pytest.raises(redis.ResponseError, match="script"):
        client.eval("return redis.call('SELECT', 1)", 0)


def test_an_invited_host_sends_no_order_and_has_no_seal_to_sign_one_with(servers: Servers, agent: AgentProcess) -> None:
    settings = read_settings(key_prefix=PREFIX, host="pc2")
    theirs = open_cluster(settings, servers.state.url_of(WORKER), servers.blobs.url_of(WORKER))
    try:
        assert theirs.hosts.seal(record_of_agent(agent)) == "" and [record.host for record in theirs.hosts.hosts()] in ([], ["pc2"])
        app = make_app(settings, servers.state.url_of(WORKER))
        with pytest.raises(Exception, match="no permissions"):
            app.send_task("tasks.host_order", args=("{}",), queue=host_queue(HOST), ignore_result=True, retry=False)
        app.close()
    finally:
        theirs.close()
    with pytest.raises(OrderRefused):
        send_order(agent.cluster, HOST, order_for("start", "pc1-cpu", fields={}), secret="not the agent's")


# -- a consumer that cannot go on ---------------------------------------------------------------------------------------
FAILING = """
import sys
import tasks.broker
from tests.worker_process import main

def fail(*args, **options):
    raise ValueError("no JSON")

tasks.broker.OwnQoS.restore_visible = fail
sys.exit(main())
"""


def test_a_worker_whose_consumer_cannot_go_on_ends_with_a_status_that_says_so(servers: Servers, tmp_path: Path) -> None:
    """Seen with Celery 5.7: it tells of an unrecoverable error, and returns as if it had been asked to end."""
    ours = {"DC_REDIS_URL": servers.state.url, "DC_BLOB_URL": servers.blobs.url, "DC_WORKER_NAME": "failing-cpu", "DC_ENGINE": "builtin",
            "DC_DEVICE": "cpu", "DC_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(PROJECT)}  # fmt: skip
    log = tmp_path / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", FAILING], env={**os.environ, **ours}, cwd=PROJECT, stdin=subprocess.PIPE, stdout=said, stderr=said
        )
    try:
        assert process.wait(120) == 1, log.read_text()[-3000:]
    finally:
        process.kill()
    assert "worker failing-cpu ends: celery: its consumer could not go on" in log.read_text()
