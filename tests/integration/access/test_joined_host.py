"""Commands on a host that has joined a cluster, by TLS and through a relay: they ask that cluster, and say what they may not."""
from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command_line import CommandLine, Finished, pictures, until
from tests.relay_rig import served

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(240)]

PATIENCE = {"DC_REFUSED_TTL_S": "3"}


FOR_THE_FIRST_HOST = (
    "invite", "invite list", "invite revoke pc2", "serve", "metrics", "flower", "redis acl --apply", "jobs cancel 0123456789ab",
    "workers stop pc1-cpu", "workers drain pc1-cpu", "workers edit pc2-cpu --tags a", "workers clear-memory pc1-cpu", "hosts config",
)  # fmt: skip
REFUSED_BY_THE_SERVER = ("jobs list", "workers logs pc1-cpu")


@dataclass
class Pair:
    """The first host, whose `up` keeps the cluster, and the one that has joined."""

    first: CommandLine
    guest: CommandLine
    url: str
    up: subprocess.Popen[str]
    """The guest's agent."""
    way: str
    """How it has joined: ``tls`` or ``relay``."""

    def revoke(self) -> None:
        """Shut the guest out."""
        assert self.first.run("invite", "revoke", "pc2").status == 0

    def states(self) -> dict[str, str]:
        """Worker -> state, as the first host sees them."""
        return {worker["name"]: worker["state"] for worker in self.first.run("workers", "list", "--json").json}


def user(folder: Path, host: str, **environment: str) -> CommandLine:
    """Somebody's account on a host of their own."""
    folder.mkdir()
    line = CommandLine(folder, DC_HOST=host, DC_ENGINE="builtin", DC_DEVICE="cpu", DC_THREADS="1", **environment)
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        line.environment.pop(name, None)
    return line


@contextmanager
def joined(tmp_path: Path, way: str) -> Iterator[Pair]:
    first, guest = user(tmp_path / "pc1", "pc1"), user(tmp_path / "pc2", "other", **PATIENCE)
    keeps = first.start("up")
    running: list[subprocess.Popen[str]] = [keeps]
    try:
        until(lambda: "pc1-cpu" in first.run("workers", "list").out, timeout_s=60)
        with served(first.folder, **{k: v for k, v in first.environment.items() if k.startswith("DC_") or k == "HOME"}) as relay:
            where = ["--bind", "127.0.0.1", "--port", "0"] if way == "tls" else ["--url", relay.join_url]
            allowed = {"DC_ALLOW_PLAINTEXT": "1"} if way == "relay" else {}
            guest.environment.update(allowed)
            invited = first.run("invite", "--name", "pc2", *where, "--json", **allowed)
            assert invited.status == 0, invited.err
            guest.write("token", invited.json["token"])
            up = guest.start("up", "--join", f"@{guest.folder / 'token'}")
            running.append(up)
            pair = Pair(first, guest, invited.json["url"], up, way)
            until(lambda: pair.states().get("pc2-cpu") == "idle", timeout_s=60)
            yield pair
            for process in reversed(running):
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    process.communicate(timeout=60)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture(scope="module", params=["tls", "relay"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The one of several tests, of which the last one shuts the guest out."""
    with joined(tmp_path_factory.mktemp("joined"), request.param) as found:
        yield found


only_by_tls = pytest.mark.parametrize("pair", ["tls"], indirect=True)


def test_commands_on_a_joined_host_ask_its_cluster_and_what_its_user_may_not_is_said_in_a_sentence(pair: Pair) -> None:
    guest = pair.guest
    listed = guest.run("workers", "list", "--json")
    assert {worker["name"] for worker in listed.json} == {"pc1-cpu", "pc2-cpu"}, listed.err
    assert listed.err.count("\n") == 1 and pair.url in listed.err and "as pc2" in listed.err and "up --leave" in listed.err
    shown = guest.run("hosts", "show", "--json")
    assert shown.json["host"] == "pc2", shown.err
    for command in FOR_THE_FIRST_HOST:
        assert_refused(guest.run(*command.split()), f"`distributed-comfy {command.split()[0]}", pair.url)
    assert_refused(guest.run("run", guest.write("p.json", pictures()), "--items", "1"), "`distributed-comfy run`", pair.url)
    for command in REFUSED_BY_THE_SERVER:
        assert_refused(guest.run(*command.split()), "run this on the host that invited it")
    assert "redis" not in {path.name for path in (guest.folder / "runtime").iterdir()}, "no second cluster was started"

    examined = guest.run("doctor", "--json")
    findings = {finding["check"]: finding for finding in examined.json["findings"]}
    wrong = [finding for finding in findings.values() if finding["level"] != "ok"]
    assert examined.status == 0 and not [each for each in wrong if pair.way == "tls" or each["check"] != "certificate"], wrong
    assert {"joined cluster", "rights of its user", "invitation", "agent", "worker pc2-cpu", "engine", "certificate"} <= set(findings)
    assert pair.url in findings["joined cluster"]["found"]


@only_by_tls
def test_a_second_machine_with_the_same_token_is_told_to_be_invited_by_its_own_name_and_writes_nothing(pair: Pair, tmp_path: Path) -> None:
    other = user(tmp_path / "pc3", "pc3")
    refused = other.run("up", "--join", (pair.guest.folder / "token").read_text())
    assert refused.status == 2 and "under a name of its own (`distributed-comfy invite --name NAME`" in refused.err, refused.err
    assert "joined " not in refused.err and "DC_HOST" not in refused.err
    left = {path.name for path in (other.folder / "home").rglob("*") if path.is_file()}
    assert not {name for name in left if name.endswith((".json", ".pem"))}, left
    assert pair.states() == {"pc1-cpu": "idle", "pc2-cpu": "idle"}


def test_a_host_that_is_shut_out_ends_with_a_status_of_its_own_says_so_once_and_leaves(pair: Pair) -> None:
    kept = pair.guest.folder / "home" / ".config" / "distributed-comfy" / "joined.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    pair.revoke()
    ended = pair.guest.finish(pair.up, timeout_s=60)
    assert ended.status == 4, ended.err
    told = [line for line in ended.err.splitlines() if "distributed-comfy invite --name pc2" in line and "revoked" in line]
    assert len(told) == 1 and told[0].startswith("error: ") and pair.url in told[0], ended.err
    assert ended.err.count("does not know the user of host pc2") == 1 and "is DC_REDIS_URL right" not in ended.err, ended.err
    reasons = re.findall(r"Cannot connect to (.*)", ended.err)
    assert reasons and len(reasons) == len(set(reasons)), f"each reason once: {ended.err}"
    until(lambda: not pair.guest.left_running(), timeout_s=20)
    log = pair.guest.folder / "cache" / "workers" / "pc2-cpu" / "worker.log"
    assert "Traceback" not in ended.err + log.read_text()
    until(lambda: set(pair.states()) == {"pc1-cpu"}, timeout_s=30)

    wanted = (4,) if pair.way == "relay" else (3, 4)  # nobody answers any more where the door has been shut
    for command in (["up"], ["workers", "list"]):
        again = pair.guest.run(*command)
        assert again.status in wanted and "error: " in again.err and "Traceback" not in again.err, again.err
        assert "up --leave" in again.err and "--join" not in again.err, again.err
    assert pair.guest.run("doctor", "--no-engine").status == 1
    left = pair.guest.run("up", "--leave")
    assert left.status == 0 and pair.url in left.out and not kept.exists()
    alone = pair.guest.run("workers", "list")
    assert alone.status == 0 and "no worker is running" in alone.out and pair.url not in alone.err
    assert "joined no cluster" in pair.guest.run("up", "--leave").out


def test_leaving_takes_back_what_joining_wrote_also_beside_an_agent_that_still_runs(tmp_path: Path) -> None:
    with joined(tmp_path, "tls") as pair:
        folder = pair.guest.folder / "home" / ".config" / "distributed-comfy"
        workers = folder / "workers.json"
        assert json.loads(workers.read_text())["remote_configuration"] is True
        left = pair.guest.run("up", "--leave")
        assert "still runs here" in left.err and f"remote_configuration in {workers} is as it was before" in left.err
        assert json.loads(workers.read_text())["remote_configuration"] is None and list((folder / "authorities").iterdir())
        pair.up.send_signal(signal.SIGTERM)
        pair.guest.finish(pair.up, timeout_s=60)
        assert not (folder / "joined.json").exists() and not list((folder / "authorities").iterdir())


def assert_refused(done: Finished, *words: str) -> None:
    assert done.status in (2, 3) and "Traceback" not in done.err and "error: " in done.err, done.err
    assert all(word in done.err for word in words), done.err
    assert len(done.err.strip().splitlines()) <= 2, done.err
