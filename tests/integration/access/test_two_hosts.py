"""Hosts with networks of their own: one is invited, joins by TLS, works without a port, is shut out or cut off in the middle of a job."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

from distributed_comfy.settings import Settings, variable
from tests.command_line import PROJECT, pixels, slow, until
from tests.hosts import Host, Network, need_hosts

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(240)]

ITEMS = 6


@dataclass
class Machine:
    """A host, and the user on it."""

    host: Host
    folder: Path

    def environment(self, **changes: str) -> dict[str, str]:
        """That of a user of this machine alone."""
        settings = {variable(field) for field in Settings.model_fields}
        kept = {name: value for name, value in os.environ.items() if name not in settings and not name.startswith("XDG_")}
        ours = {
            "HOME": str(self.folder), "DC_CONFIG": os.devnull, "DC_RUNTIME_DIR": str(self.folder / "run"),
            "DC_CACHE_DIR": str(self.folder / "cache"), "DC_HOST": self.host.name, "DC_ENGINE": "builtin", "DC_DEVICE": "cpu",
            "DC_THREADS": "1", "PYTHONPATH": str(PROJECT),
        }  # fmt: skip
        return {**kept, **ours, **changes}

    def command(self, *arguments: str) -> Any:
        """Run one of our commands here; what it says as JSON."""
        return json.loads(self.host.run(*ours(*arguments, "--json"), env=self.environment(), timeout_s=60))

    def start_worker(self, **changes: str) -> subprocess.Popen[str]:
        """A worker that has the rule nodes, too."""
        log = (self.folder / "worker.log").open("a")
        environment = self.environment(**changes)
        return self.host.start(sys.executable, "-m", "tests.worker_process", stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)

    def start_job(self, prompt: Any, out: str) -> subprocess.Popen[str]:
        """`distributed-comfy run`."""
        path = self.folder / "prompt.json"
        path.write_text(json.dumps(prompt))
        arguments = ours("run", str(path), "--items", str(ITEMS), "--out", str(self.folder / out))
        return self.host.start(*arguments, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def images(self, out: str) -> list[NDArray[Any]]:
        """What a job saved, in order."""
        return [pixels(path) for path in sorted((self.folder / out).glob("*.png"))]

    def workers(self) -> dict[str, list[str]]:
        """Name of each worker -> items it has."""
        return {worker["name"]: worker["items"] for worker in self.command("workers", "list") if worker["state"] != "lost"}


def ours(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "distributed_comfy", *arguments]


@pytest.fixture
def network() -> Iterator[Network]:
    need_hosts()
    with Network() as net:
        yield net


@pytest.fixture
def master(network: Network, tmp_path: Path) -> Machine:
    """The host with the embedded servers, kept by its own worker."""
    machine = Machine(network.host("master"), tmp_path / "master")
    machine.folder.mkdir()
    machine.start_worker()
    return machine


@pytest.fixture
def pc2(network: Network, tmp_path: Path) -> Machine:
    machine = Machine(network.host("pc2"), tmp_path / "pc2")
    machine.folder.mkdir()
    return machine


def join(master: Machine, guest: Machine) -> dict[str, Any]:
    """Invite a host and let its worker join; what the invitation said."""
    until(lambda: "master-cpu" in master.workers(), timeout_s=60)
    said: dict[str, Any] = master.command("invite", "--name", guest.host.name, "--lan")
    guest.start_worker(TEST_JOIN=said["token"])
    name = f"{guest.host.name}-cpu"
    try:
        until(lambda: name in master.workers(), timeout_s=60)
    except AssertionError:
        pytest.fail((guest.folder / "worker.log").read_text(), pytrace=False)
    return said


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
    undisturbed = finish(master.start_job(slow(200), "undisturbed"))
    assert "pc2-cpu" in undisturbed and "master-cpu" in undisturbed
    connections = pc2.host.run("ss", "-tnH", "state", "established").split()
    assert {address for address in connections if address.startswith(f"{here}:")} == {f"{here}:47380", f"{here}:47381"}

    job = master.start_job(slow(2000), "disturbed")
    until(lambda: master.workers().get("pc2-cpu"), timeout_s=30)
    master.command("invite", "revoke", "pc2")
    assert pc2.host.listens() == []
    said_of_job = finish(job)
    assert_same(master.images("disturbed"), master.images("undisturbed"))
    assert "master-cpu" in said_of_job
    until(lambda: "pc2-cpu" not in master.workers(), timeout_s=30)
    assert not pc2.host.run("ss", "-tnH", "state", "established").split()
    assert not [address for address in master.host.listens() if not address.startswith("127.")], "the last guest has gone, the door is shut"


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
    finish(master.start_job(slow(200), "undisturbed"))

    job = master.start_job(slow(2000), "disturbed")
    until(lambda: master.workers().get("pc2-cpu"), timeout_s=30)
    pc2.host.cut("router")
    finish(job)
    assert_same(master.images("disturbed"), master.images("undisturbed"))
    pc2.host.mend("router")
    pc2.host.run("ip", "route", "replace", "default", "via", "10.77.2.2")  # it went with the cable
    until(lambda: "pc2-cpu" in master.workers(), timeout_s=60)
    assert "pc2-cpu" in finish(master.start_job(slow(200), "again"))
    assert_same(master.images("again"), master.images("undisturbed"))
