"""docs/workers.md word for word on three hosts: the first one, a second PC on a cable, and a pod that reaches nothing but nginx.

The tests follow the page from its beginning to its end on the same hosts, so they run in the order in which they stand here.
"""
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import pytest

from tests.command_line import pictures, pixels, until
from tests.conftest import missing_service
from tests.hosts import Network, need_hosts
from tests.relay_rig import NGINX, documented_server, make_certificate
from tests.workers_page import PAGE, Site, press_ctrl_c, read_blocks, wait_for

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(300)]

NAME = "gpu.example.org"
ITEMS = 6
MANY_ITEMS = 15
"""Of a job that still runs when another command has looked at the workers."""
WORKERS = {"pc1-cpu", "pc2-cpu", "pod1-cpu"}
GUESTS = ("pc2", "pod1")


@dataclass
class Hosts:
    """The three hosts, and what was done on them."""

    pc1: Site
    pc2: Site
    pod1: Site
    tokens: dict[str, str] = field(default_factory=dict)
    ups: dict[str, tuple[subprocess.Popen[str], Path]] = field(default_factory=dict)
    """The terminals of `up`: processes, and what they print."""
    done: set[str] = field(default_factory=set)
    """Names of the blocks that were run."""

    def site(self, name: str) -> Site:
        """By its host's name."""
        return {"pc1": self.pc1, "pc2": self.pc2, "pod1": self.pod1}[name]

    def commands(self, name: str, token: str = "", **changes: str) -> tuple[Site, list[str]]:
        """A block of the page with its placeholders filled in: the token, and that the devices here are CPUs."""
        block = read_blocks(PAGE.read_text(encoding="utf-8"))[name]
        filled = [command.replace("TOKEN", token).replace("-cuda0", "-cpu") for command in block.commands]
        for old, new in changes.items():
            filled = [command.replace(f"--out {old}", f"--out {new}") for command in filled]
        self.done.add(name)
        return self.site(block.host), filled

    def follow(self, name: str, **changes: str) -> list[str]:
        """Run a block; what its commands printed."""
        site, commands = self.commands(name, **changes)
        return [site.run(command) for command in commands]

    def leave_running(self, name: str) -> tuple[subprocess.Popen[str], Path]:
        """Run a block of one command that goes on; its process, and what it prints."""
        site, (command,) = self.commands(name)
        return site.type(command)

    def up(self, host: str, name: str = "up", token: str = "") -> None:
        """Run a block that is `up` on a host."""
        _, (command,) = self.commands(name, token)
        self.ups[host] = self.site(host).type(command)

    def up_says(self, host: str) -> str:
        """What `up` of a host has printed when its worker runs."""
        process, said = self.ups[host]
        wait_for(said, f"worker {host}-cpu: running", process)
        return said.read_text()

    def invite(self, name: str) -> None:
        """Run a block that invites; the command that it prints must be the one on the page."""
        (printed,) = self.follow(name)
        host = re.findall(r"host (\w+) may join", printed)[0]
        (self.tokens[host],) = re.findall(r"^distributed-comfy up --join (dc1\.\S+)$", printed, re.MULTILINE)

    def workers(self) -> dict[str, list[str]]:
        """Name of each live worker -> items it has."""
        return {worker["name"]: worker["items"] for worker in self.pc1.ask("distributed-comfy workers list") if worker["state"] != "lost"}

    def phase(self, worker: str) -> str:
        """As the agent of its host tells it."""
        host = self.pc1.ask(f"distributed-comfy hosts show {worker.split('-')[0]}")
        return str(next(each["phase"] for each in host["workers"] if each["name"] == worker))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """All three hosts joined, as the page says; before the second one joins, a job runs on the first."""
    need_hosts(nat=True)
    for program in ("nginx", "openssl", "bash", "mount"):
        if not (shutil.which(program) or shutil.which(program, path="/usr/sbin")):
            missing_service(f"the program {program}", f"install it (Debian, Ubuntu: apt-get install {program})")
    with Network() as net:
        sites = [Site(net.host(name), tmp_path_factory.mktemp(name)) for name in ("pc1", "pc2", "pod1")]
        here = Hosts(*sites)
        lay_cables(net, here)
        try:
            set_up(here)
            yield here
        finally:
            here.pc1.end_all(signal.SIGTERM)  # nginx would leave a process if it were killed
            for guest in (here.pc2, here.pod1):
                guest.end_all(signal.SIGKILL)
            until(lambda: not any(site.pids() for site in sites), timeout_s=60)


def set_up(here: Hosts) -> None:
    """The page from its beginning until all three hosts work."""
    here.pc1.folder.joinpath("graph.json").write_text(json.dumps(pictures(steps=60, width=256, height=256)))
    here.up("pc1")
    here.up_says("pc1")
    assert "pc1-cpu" in here.follow("local")[0]
    here.invite("invite-lan")
    here.up("pc2", "join-lan", here.tokens["pc2"])
    open_nginx(here)
    process, said = here.leave_running("serve")
    wait_for(said, "workers join by", process)
    here.pc1.trusts = here.pc1.folder / "ca.pem"
    here.invite("invite-relay")  # with a certificate that both hosts' systems trust
    here.pc1.trusts = None
    here.pc1.run("distributed-comfy invite revoke pod1")
    here.invite("invite-relay-ca")
    here.up("pod1", "join-relay", here.tokens["pod1"])
    assert "joined rediss://10.77.1.1:47380/0 as host pc2" in here.up_says("pc2")
    assert f"joined wss://{NAME} as host pod1" in here.up_says("pod1")


def lay_cables(net: Network, here: Hosts) -> None:
    """pc1 and pc2 on one cable; pod1 behind a router that lets nobody in, from where only port 443 of pc1 can be reached."""
    router = net.host("router")
    net.cable(here.pc1.host, here.pc2.host)
    address, _ = net.cable(here.pc1.host, router)
    net.cable(here.pod1.host, router)
    net.hide(router, here.pc1.host)
    here.pc1.names, here.pod1.names = {NAME: "127.0.0.1"}, {NAME: address}
    for rule in ("add table ip dc", "add chain ip dc in { type filter hook input priority 0 ; }",
                 "add rule ip dc in iifname router tcp dport != 443 drop"):  # fmt: skip
        here.pc1.host.run("nft", rule)


def open_nginx(here: Hosts) -> None:
    """nginx with the block of docs/relay.md, but for the place of its certificate, which has an authority of its own: itself."""
    folder = here.pc1.folder / "nginx"
    folder.mkdir()
    here.pc1.folder.joinpath("ca.pem").write_text(make_certificate(folder, f"DNS:{NAME}"))
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, server=documented_server(folder)))
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    process, said = here.pc1.type(f"exec {program} -p {folder} -c {config}")
    until(lambda: "0.0.0.0:443" in here.pc1.host.listens() or process.poll() is not None)
    assert process.poll() is None, said.read_text()


def made(here: Hosts, folder: str) -> list[numpy.ndarray]:
    """What a job saved, in order."""
    return [pixels(path) for path in sorted((here.pc1.folder / folder).glob("*.png"))]


def assert_same(here: Hosts, folder: str, items: int = ITEMS) -> None:
    """As many pictures as items, all different; the first ones are those that the first host made alone."""
    found, wanted = made(here, folder), made(here, "pictures")
    assert (len(found), len(wanted)) == (items, ITEMS)
    assert len({picture.tobytes() for picture in found}) == items
    assert all(numpy.array_equal(one, other) for one, other in zip(found, wanted, strict=False))


def workers_file(site: Site) -> Path:
    """Where the agent of a host has written its workers down."""
    return site.folder / ".config" / "distributed-comfy" / "workers.json"


def test_the_first_host_sees_all_three_and_nothing_listens_on_the_others(hosts: Hosts) -> None:
    invited, agents, of_pc2, workers = hosts.follow("check")
    assert len(re.findall(r"^(?:pc2|pod1) +connected ", invited, re.MULTILINE)) == 2
    assert set(re.findall(r"^(\w+) +cpu .* 1 running ", agents, re.MULTILINE)) == {"pc1", "pc2", "pod1"}
    assert "host pc2" in of_pc2 and set(re.findall(r"^(\S+-cpu) ", workers, re.MULTILINE)) == WORKERS
    examined, there = hosts.follow("check-there")
    assert "rights of its user" in examined and " 0 failed, 0 with a warning" in examined, examined
    assert set(re.findall(r"^(\S+-cpu) ", there, re.MULTILINE)) == WORKERS
    assert " 0 failed, 0 with a warning" in hosts.pod1.run("distributed-comfy doctor"), "through the relay, too"
    assert hosts.pc2.host.listens() == hosts.pod1.host.listens() == []
    open_to_others = sorted(address for address in hosts.pc1.host.listens() if not address.startswith("127."))
    assert open_to_others == ["0.0.0.0:443", "10.77.1.1:47380", "10.77.1.1:47381"]
    reached = hosts.pod1.host.run("ss", "-tnH", "state", "established").splitlines()
    assert {line.split()[3] for line in reached if not line.split()[3].startswith("127.")} == {"10.77.2.1:443"}


def test_a_job_runs_on_all_three_with_the_bytes_of_one_and_the_log_of_a_remote_worker_is_followed(hosts: Hosts) -> None:
    following, said = hosts.leave_running("logs")
    wait_for(said, "worker pc2-cpu is ready", following)
    (printed,) = hosts.follow("slow")
    assert all(worker in printed for worker in WORKERS), printed
    assert_same(hosts, "pictures-auto")
    job = re.findall(r"job (\w+):", printed)[0]
    wait_for(said, job, following)
    assert press_ctrl_c(following) in (0, 130)


def test_workers_of_other_hosts_are_stopped_changed_started_and_drained_from_the_first(hosts: Hosts) -> None:
    slots, said = hosts.leave_running("slots")
    site, (stop, edit, start, drain, resume) = hosts.commands("steer")
    site.run(stop)
    assert hosts.phase("pc2-cpu") == "stopped"
    site.run(edit)
    site.run(start)
    (changed,) = [worker for worker in site.ask("distributed-comfy workers list") if worker["name"] == "pc2-cpu"]
    assert changed["tags"] == ["big"]
    site.run(drain)
    until(lambda: hosts.phase("pc2-cpu") == "draining")
    site.run(resume)
    until(lambda: hosts.phase("pc2-cpu") == "running")

    assert slots.wait(60) == 0, said.read_text()
    until(lambda: hosts.phase("pod1-cpu") == "running", timeout_s=60)
    assert json.loads(workers_file(hosts.pod1).read_text())["workers"]["pod1-cpu"]["environment"] == {"DC_SLOTS": "2"}


def test_a_killed_agent_leaves_no_process_and_up_alone_brings_its_workers_back(hosts: Hosts) -> None:
    for name in GUESTS:
        os.kill(hosts.ups[name][0].pid, signal.SIGKILL)
    until(lambda: not hosts.pc2.pids() and not hosts.pod1.pids(), timeout_s=30)
    for name in GUESTS:
        file = workers_file(hosts.site(name))
        file.write_text(json.dumps({**json.loads(file.read_text()), "remote_configuration": None}))
        hosts.up(name)
    assert all("joined " in hosts.up_says(name) for name in GUESTS)
    assert set(hosts.workers()) == WORKERS
    known = {host["host"]: host["remote_configuration"] for host in hosts.pc1.ask("distributed-comfy hosts list")}
    assert known == {"pc1": True, "pc2": False, "pod1": False}, "by a socket of the relay's forwarder, too, the Redis is another host's"


def test_the_items_of_a_host_that_is_shut_out_in_mid_job_run_elsewhere(hosts: Hosts) -> None:
    site, commands = hosts.commands("local", pictures="disturbed")
    job, said = site.type(commands[-1].replace(f"--items {ITEMS}", f"--items {MANY_ITEMS}"))
    until(lambda: hosts.workers().get("pc2-cpu"), timeout_s=30)
    hosts.follow("revoke")
    assert job.poll() is None, "the job was over before the host was shut out"
    assert job.wait(90) == 0, said.read_text()
    assert_same(hosts, "disturbed", MANY_ITEMS)
    until(lambda: set(hosts.workers()) == WORKERS - {"pc2-cpu"}, timeout_s=30)
    assert hosts.pc2.host.listens() == []
    process, said = hosts.ups["pc2"]
    assert process.wait(120) == 4, said.read_text()
    assert "`distributed-comfy invite --name pc2`" in said.read_text()
    (left,) = hosts.follow("leave")
    assert "has left rediss://10.77.1.1:47380/0, where it was host pc2" in left
    assert hosts.pc2.pids() == []


def test_every_command_of_the_page_was_run_or_says_that_it_was_not(hosts: Hosts) -> None:
    blocks = read_blocks(PAGE.read_text(encoding="utf-8"))
    assert {name for name, block in blocks.items() if block.host} == hosts.done
