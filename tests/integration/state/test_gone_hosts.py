"""Hosts whose agents fall silent: they are missed for a day, unless they said farewell; and what a hostile one can leave."""
from __future__ import annotations

from typing import Any

import pytest

from distributed_comfy.messages import dump
from distributed_comfy.state.hosts import HostTable, heard_ms
from distributed_comfy.state.records import HostDevice, HostRecord, HostWorker
from tests.state_cluster import Cluster

pytestmark = pytest.mark.redis
DAY_MS = 86_400_000
SEAL = "0" * 64


def record_of(*workers: str, host: str = "pc2", **facts: Any) -> HostRecord:
    return HostRecord(host, "me", 1, "life", workers=tuple(HostWorker(name, "running", "cpu") for name in workers), **facts)


def table(cluster: Cluster, *invited: str) -> HostTable:
    return HostTable(cluster.scripts, cluster.settings, lambda: invited)


def fall_silent(cluster: Cluster, record: HostRecord) -> HostTable:
    """An agent takes its place and is killed; its lease runs out."""
    hosts = table(cluster)
    hosts.take(record, SEAL, 1)
    hosts.renew(record, SEAL)
    cluster.client.delete(cluster.scripts.keys("host", record.host))
    return hosts


def test_a_host_that_falls_silent_is_missed_with_what_it_said_last(cluster: Cluster) -> None:
    hosts = fall_silent(cluster, record_of("pc2-cpu", configuration={"workers": {"pc2-cpu": {}}}))
    living, (gone,) = hosts.known()
    assert living == hosts.hosts() == hosts.living() == []
    assert (gone.record.host, [worker.name for worker in gone.record.workers], gone.record.configuration) == ("pc2", ["pc2-cpu"], {})
    assert 0 <= hosts.now_ms() - gone.seen_ms < 5_000
    assert [again.record.host for again in hosts.known()[1]] == ["pc2"], "however often others have looked"
    hosts.take(record_of("pc2-cpu"), SEAL, 1)
    assert [record.host for record in hosts.known()[0]] == ["pc2"] and hosts.known()[1] == []


def test_a_host_is_missed_for_a_day_and_no_longer(cluster: Cluster) -> None:
    hosts, key = fall_silent(cluster, record_of()), cluster.scripts.keys("heard", "pc2")
    assert DAY_MS - 5_000 < cluster.client.pttl(key) <= DAY_MS
    cluster.client.pexpire(key, DAY_MS - 3_600_000)
    assert 3_600_000 <= hosts.now_ms() - hosts.known()[1][0].seen_ms < 3_605_000
    cluster.client.delete(key)  # as it goes by itself
    assert hosts.known() == ([], []) and hosts.hosts() == []
    assert not cluster.client.exists(cluster.scripts.keys("hosts"))


def test_a_host_that_ends_in_good_order_is_not_missed(cluster: Cluster) -> None:
    hosts = table(cluster)
    hosts.take(record_of("pc2-cpu"), SEAL, 1)
    hosts.leave("pc2")
    assert hosts.known() == ([], []) and not cluster.client.exists(cluster.scripts.keys("heard", "pc2"))


def test_a_host_and_its_workers_can_be_forgotten(cluster: Cluster) -> None:
    hosts = fall_silent(cluster, record_of("pc2-cpu", "pc2-two"))
    assert hosts.forget_worker("pc2-two") == "pc2" and hosts.forget_worker("pc2-two") == ""
    assert [worker.name for worker in hosts.known()[1][0].record.workers] == ["pc2-cpu"]
    assert cluster.client.pttl(cluster.scripts.keys("heard", "pc2")) > 0, "it is forgotten by itself all the same"
    assert hosts.forget_worker("pc2-cpu") == "pc2" and hosts.known()[1] == [], "the last one takes the host along"
    fall_silent(cluster, record_of("pc2-cpu"))
    assert hosts.forget("pc2") and not hosts.forget("pc2") and hosts.known() == ([], [])


def test_what_a_living_host_said_can_be_forgotten_and_it_lives_on(cluster: Cluster) -> None:
    hosts = table(cluster)
    hosts.take(record_of("pc2-cpu"), SEAL, 1)
    assert hosts.forget("pc2") and [record.host for record in hosts.hosts()] == ["pc2"]


def test_of_a_host_with_much_to_say_only_its_name_is_kept(cluster: Cluster) -> None:
    many = record_of(*(f"pc2-{number}" for number in range(3000)), devices=(HostDevice("cpu"),))
    (gone,) = fall_silent(cluster, many).known()[1]
    assert gone.record.host == "pc2" and gone.record.workers == gone.record.devices == ()
    assert cluster.client.strlen(cluster.scripts.keys("heard", "pc2")) <= 65_536


@pytest.mark.parametrize(
    "text", ["|||", '{"version": 99}', dump(record_of(host="pc1")), dump(record_of("pc2-" + "x" * 70_000))],
    ids=["no JSON", "another version", "of another host", "too long"],
)  # fmt: skip
def test_what_cannot_be_read_hides_that_host_alone(cluster: Cluster, text: str) -> None:
    hosts, keys = fall_silent(cluster, record_of(host="pc3")), cluster.scripts.keys
    cluster.client.sadd(keys("hosts"), "pc2")
    cluster.client.set(keys("heard", "pc2"), text, px=DAY_MS)
    assert [gone.record.host for gone in hosts.known()[1]] == ["pc3"]
    cluster.client.delete(keys("heard", "pc2"))
    cluster.client.rpush(keys("heard", "pc2"), "x")
    assert [gone.record.host for gone in hosts.known()[1]] == ["pc3"]


def test_an_invited_host_names_only_its_own_workers_and_no_time_to_come(cluster: Cluster) -> None:
    keys, hosts = cluster.scripts.keys, table(cluster, "pc2")
    cluster.client.sadd(keys("hosts"), "pc2")
    cluster.client.set(keys("heard", "pc2"), dump(record_of("pc2-cpu", "pc1-cpu")), px=30 * DAY_MS)
    ((gone,), now_ms) = hosts.known()[1], hosts.now_ms()
    assert [worker.name for worker in gone.record.workers] == ["pc2-cpu"] and gone.seen_ms <= now_ms
    assert heard_ms(-1, now_ms) == now_ms - DAY_MS, "one that it has let last for ever is as old as any can be"
