"""Hosts with networks of their own: one is invited, joins by TLS, works without a port, is shut out or cut off in the middle of a job."""
from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

from tests.command_line import slow, until
from tests.hosts import Network, need_hosts
from tests.machines import Machine, join

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(240)]

ITEMS = 6


@pytest.fixture
def network() -> Iterator[Network]:
    need_hosts()
    with Network() as net:
        yield net


@pytest.fixture
def master(network: Network, tmp_path: Path) -> Machine:
    """The host with the embedded servers, kept by its own worker."""
    machine = Machine(network.host("master"), tmp_path / "master")
    machine.start_worker()
    return machine


@pytest.fixture
def pc2(network: Network, tmp_path: Path) -> Machine:
    return Machine(network.host("pc2"), tmp_path / "pc2")


def finish(job: subprocess.Popen[str]) -> str:
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said
    return said


def assert_same(found: list[NDArray[Any]], wanted: list[NDArray[Any]]) -> None:
    assert len(found) == len(wanted) == ITEMS
    assert all(numpy.array_equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_an_invited_host_works_by_tls_without_a_port_and_when_it_is_shut_out_its_item_runs_elsewhere(
    network: Network, master: Machine, pc2: Machine
) -> None:
    here, _ = network.cable(master.host, pc2.host)
    said = join(master, pc2)
    assert said["url"] == f"rediss://{here}:47380/0"
    assert pc2.host.listens() == []
    assert sorted(address for address in master.host.listens() if not address.startswith("127.")) == [f"{here}:47380", f"{here}:47381"]
    undisturbed = finish(master.start_job(slow(200), "undisturbed", ITEMS))
    assert "pc2-cpu" in undisturbed and "master-cpu" in undisturbed
    connections = pc2.host.run("ss", "-tnH", "state", "established").split()
    assert {address for address in connections if address.startswith(f"{here}:")} == {f"{here}:47380", f"{here}:47381"}

    master.command("invite", "--name", "pc3")  # for whom the door stays open: it is not what keeps pc2 out
    job = master.start_job(slow(4000), "disturbed", ITEMS)
    until(lambda: master.workers().get("pc2-cpu"), timeout_s=30)
    master.command("invite", "revoke", "pc2")
    assert pc2.host.listens() == []
    said_of_job = finish(job)
    assert_same(master.images("disturbed"), master.images("undisturbed"))
    assert "master-cpu" in said_of_job
    until(lambda: "pc2-cpu" not in master.workers(), timeout_s=30)
    assert [address for address in master.host.listens() if not address.startswith("127.")], "for pc3"
    master.command("invite", "revoke", "pc3")
    until(lambda: not [address for address in master.host.listens() if not address.startswith("127.")], timeout_s=30)
    until(lambda: not pc2.host.run("ss", "-tnH", "state", "established").split(), timeout_s=30)


def test_a_host_behind_a_router_that_lets_nobody_in_works_and_bears_a_pulled_cable(network: Network, master: Machine, pc2: Machine) -> None:
    need_hosts(nat=True)
    router = network.host("router")
    network.cable(master.host, router, default_route=False)  # the master has no way to what is behind the router
    network.cable(pc2.host, router)
    network.hide(router, master.host)
    until(lambda: "master-cpu" in master.workers(), timeout_s=60)
    address = master.host.run("ip", "-br", "-4", "addr", "show", "router").split()[2].split("/")[0]
    said = master.command("invite", "--name", "pc2", "--bind", address)
    pc2.start_worker(TEST_JOIN=said["token"])
    until(lambda: "pc2-cpu" in master.workers(), timeout_s=60)
    finish(master.start_job(slow(200), "undisturbed", ITEMS))

    job = master.start_job(slow(2000), "disturbed", ITEMS)
    until(lambda: master.workers().get("pc2-cpu"), timeout_s=30)
    pc2.host.cut("router")
    finish(job)
    assert_same(master.images("disturbed"), master.images("undisturbed"))
    pc2.host.mend("router")
    pc2.host.run("ip", "route", "replace", "default", "via", "10.77.2.2")  # it went with the cable
    until(lambda: "pc2-cpu" in master.workers(), timeout_s=60)
    assert "pc2-cpu" in finish(master.start_job(slow(200), "again", ITEMS))
    assert_same(master.images("again"), master.images("undisturbed"))
