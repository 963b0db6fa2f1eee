"""What may go wrong round a master: no worker, a worker that is killed, servers that go away, the master itself that dies."""
from __future__ import annotations

import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.blob_server import BlobServer
from tests.cluster_fixtures import open_rig
from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_prompts import upscale
from tests.comfyui.master_rig import Master, open_master
from tests.prompts import node, out

SLOW_MS = 700


def slow(label: str, items: int, *, seed: int = 100, milliseconds: int = SLOW_MS, side: int = 16) -> dict[str, Any]:
    """A prompt of which a worker with the built-in engine can run every item; another side is another job, not one of ComfyUI's cache."""
    return {
        "seed": node("DistributedSeed", seed=seed),
        "image": node("RuleImage", seed=out("seed"), width=side, height=side, batch_size=1, channels=3),
        "work": node("RuleSlow", images=out("image"), milliseconds=milliseconds),
        "9": node("DistributedCollector", images=out("work"), items=items),
        "show": node("RuleRecord", images=out("9"), label=label),
    }


class OwnServers:
    """A pair of servers of which a test stops and starts the one with the table."""

    def __init__(self, folder: Path, program: str, *blob_options: str) -> None:
        self._folder = folder / "state"
        self._state = BlobServer(program, folder / "state", "--appendonly", "yes", "--appendfsync", "always")
        self.blobs = BlobServer(program, folder / "blobs", *blob_options)
        self.state_url, self.blob_url = self._state.url, self.blobs.url

    def stop_state(self) -> None:
        """Nothing listens there any more."""
        self._state.kill()

    @contextmanager
    def no_state(self) -> Iterator[None]:
        """The same while the context lasts; then it comes back with what it knew."""
        self._state.kill()
        try:
            yield
        finally:
            self._state.start()

    def restart_state(self, away_s: float) -> None:
        """It comes back with what it knew."""
        self._state.kill()
        time.sleep(away_s)
        self._state.start()

    @contextmanager
    def silent_state(self) -> Iterator[None]:
        """It takes connections and says nothing, as behind a network that drops everything."""
        self._state.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._state.signal(signal.SIGCONT)

    def wipe_state(self) -> None:
        """It comes back and knows nothing."""
        self._state.kill()
        shutil.rmtree(self._folder / "appendonlydir")
        self._state.start()

    def close(self) -> None:
        """End both."""
        self._state.kill()
        self.blobs.kill()


@pytest.fixture
def own_servers(cluster_servers: Any, tmp_path: Path) -> Iterator[OwnServers]:
    servers = OwnServers(tmp_path, cluster_servers.program)
    yield servers
    servers.close()


@pytest.fixture
def rig(cluster_servers: Any, tmp_path: Path) -> Iterator[Rig]:
    """Workers of a test's own."""
    with open_rig("builtin", cluster_servers, tmp_path / "workers", prefix=f"{tmp_path.name}:") as found:
        yield found


@dataclass(frozen=True)
class Site:
    """A master, its workers if it has any, and the servers of their own, which go away and come back."""

    master: Master
    rig: Rig
    servers: OwnServers

    def begin(self, prompt: dict[str, Any]) -> tuple[str, str]:
        """Queue a prompt; its id and its job's."""
        before = list(self.master.jobs())
        return self.master.server.queue(prompt), self.master.job_of(before)

    def done(self, job: str) -> int:
        """How many of a job's items the master has fetched."""
        return self.master.server.log().count(f"job {job} item")

    def rest(self) -> None:
        """Nothing of a test stays for the next one; all are there again and idle."""
        if self.master.server.running.poll() is not None:
            self.master.restart()
        for job, state in self.master.jobs().items():
            if not state.ended:
                self.rig.cluster.jobs.cancel(job, "its test is over")
        self.rig.wait_idle()
        self.master.server.wait_ready()


@contextmanager
def open_site(
    comfy: Comfy, python: str, base_directory: Path, program: str, folder: Path, *names: str, participate: bool
) -> Iterator[Site]:
    """A site with these workers."""
    servers = OwnServers(folder, program)
    try:
        with open_rig("builtin", servers, folder / "workers", names=names) as rig, open_master(
            comfy, python, base_directory, master_folder(folder), rig, options={"participate": participate}, DC_HOST="here"
        ) as master:
            yield Site(master, rig, servers)
    finally:
        servers.close()


@pytest.fixture(scope="module")
def lone(
    comfy: Comfy, packed_python: str, base_directory: Path, cluster_servers: Any, tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Site]:  # fmt: skip
    """Nobody but the master, which takes part where the parameter says so."""
    folder = tmp_path_factory.mktemp("lone")
    with open_site(comfy, packed_python, base_directory, cluster_servers.program, folder, participate=request.param) as site:
        yield site


@pytest.fixture(scope="module")
def shared_site(
    comfy: Comfy, packed_python: str, base_directory: Path, cluster_servers: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with open_site(comfy, packed_python, base_directory, cluster_servers.program, folder, "one", "two", participate=False) as site:
        yield site


@pytest.fixture
def site(shared_site: Site) -> Site:
    """A master that leaves all items to two workers; one for all tests, which leave the state server running."""
    shared_site.rest()
    return shared_site


def master_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "master"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("lone", [True, False], indirect=True)
def test_with_nobody_alive_the_master_makes_all_of_it_and_says_so_once(lone: Site) -> None:
    master = lone.master
    master.server.execute(slow("alone", 4, milliseconds=10))
    assert master.recorded("alone") == [100, 101, 102, 103]
    assert master.workers_of(master.last_job()) == ["here-master"] * 4
    assert master.ran_here().count("RuleImage") == 4
    master.server.execute(slow("alone again", 2, milliseconds=10))
    assert master.recorded("alone again") == [100, 101]
    assert master.server.log().count("no live worker can run it") == 1


@pytest.mark.parametrize("lone", [True], indirect=True)
def test_without_a_server_at_acceptance_an_upscale_is_made_here(lone: Site) -> None:
    there = lone.master.images(upscale(2, seed=500), "up")
    with lone.servers.no_state():
        lone.master.server.post("/free", {"unload_models": True, "free_memory": True})  # nothing comes from ComfyUI's cache
        again = lone.master.images(upscale(2, seed=500), "up")
    assert again.tobytes() == there.tobytes()


@pytest.mark.parametrize("lone", [True, False], indirect=True)
def test_without_a_server_at_acceptance_all_of_it_is_made_here(lone: Site) -> None:
    before = len(lone.master.server.log())
    with lone.servers.no_state():
        lone.master.server.execute(slow("no server", 3, milliseconds=10, side=20))
        assert lone.master.recorded("no server") == [100, 101, 102]
        assert lone.master.server.log()[before:].count("is not distributed") == 1
        lone.master.server.until(lambda: not lone.master.spools(), 10.0)


def test_a_worker_that_is_killed_costs_a_retry_and_no_image(
    comfy: Comfy, packed_python: str, base_directory: Path, rig: Rig, tmp_path: Path
) -> None:
    with open_master(comfy, packed_python, base_directory, master_folder(tmp_path), rig, DC_HOST="here") as master:
        prompt_id = master.server.queue(slow("killed", 9))
        job = master.server.until(lambda: list(master.jobs()))[-1]
        master.server.until(lambda: "two" in [state.worker for state in running(rig, job)])
        rig.workers["two"].kill()
        assert master.server.wait(prompt_id)["status"]["status_str"] == "success"
        assert master.recorded("killed") == list(range(100, 109))
        assert set(master.workers_of(job)) >= {"one", "here-master"}


def running(rig: Rig, job: str) -> list[Any]:
    return [state for state in rig.cluster.jobs.item_states(job).values() if state.state == "running"]


def test_a_master_that_was_killed_goes_on_where_it_stopped_when_the_prompt_comes_again(site: Site) -> None:
    master, rig = site.master, site.rig
    _, job = site.begin(slow("resumed", 8))
    master.server.until(lambda: sum(state.state == "done" for state in rig.cluster.jobs.item_states(job).values()) >= 3)
    time.sleep(0.3)
    master.server.kill()
    master.restart()
    master.server.execute(slow("resumed", 8))
    assert master.recorded("resumed") == list(range(100, 108))
    assert f"goes on where job {job} stopped" in master.server.log()
    second = master.last_job()
    assert second != job and master.state(job) in ("cancelled", "done")  # workers went on for as long as its owner's lease
    assert len(rig.executions(second)) <= 5
    master.server.until(lambda: not master.spools(), 10.0)


def test_the_state_server_may_go_away_while_the_node_waits(site: Site) -> None:
    prompt_id, job = site.begin(slow("outage", 8, side=20))
    site.master.server.until(lambda: running(site.rig, job))
    site.servers.restart_state(away_s=3.0)
    assert site.master.server.wait(prompt_id)["status"]["status_str"] == "success"
    assert site.master.recorded("outage") == list(range(100, 108))


def test_a_state_server_that_comes_back_empty_gets_the_job_again(site: Site) -> None:
    master, rig = site.master, site.rig
    prompt_id, job = site.begin(slow("wiped", 8, side=24))
    master.server.until(lambda: site.done(job) >= 3)
    site.servers.wipe_state()
    assert master.server.wait(prompt_id)["status"]["status_str"] == "success"
    assert master.recorded("wiped") == list(range(100, 108))
    here = int(re.findall(rf"job {job} goes on: (\d+) of 8 items are here", master.server.log())[-1])
    assert here >= 3
    assert sum(state.worker != "" for state in rig.cluster.jobs.item_states(job).values()) == 8
    assert len(rig.executions(job)) <= 8 + 2  # what ran when the server went ran in vain


def test_a_cluster_that_stays_away_while_the_node_waits_leaves_the_rest_to_the_master(site: Site) -> None:
    master = site.master
    ran_before, said_before = master.ran_here().count("RuleSlow"), len(master.server.log())
    prompt_id, job = site.begin(slow("away", 9, side=28))
    master.server.until(lambda: site.done(job) >= 3)
    with site.servers.no_state():
        assert master.server.wait(prompt_id)["status"]["status_str"] == "success"
    assert master.recorded("away") == list(range(100, 109))
    said = master.server.log()[said_before:]
    (missing,) = map(int, re.findall(rf"job {job} goes on in this ComfyUI alone, which makes the (\d+) of 9 items that are missing", said))
    assert missing <= 6 and master.ran_here().count("RuleSlow") - ran_before == missing
    assert "is not distributed" not in said


def test_a_clicked_interrupt_ends_the_wait_also_without_a_server(site: Site) -> None:
    prompt_id, _ = site.begin(slow("never", 8, milliseconds=2000, side=32))
    with site.servers.no_state():
        time.sleep(0.5)
        site.master.server.post("/interrupt")
        entry = site.master.server.wait(prompt_id, 5.0)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"


def test_a_prompt_with_a_class_that_is_not_here_does_not_stop_comfyui_while_the_server_is_silent(
    comfy: Comfy, packed_python: str, base_directory: Path, own_servers: OwnServers, tmp_path: Path
) -> None:
    with open_rig("builtin", own_servers, tmp_path / "workers", names=()) as rig, open_master(
        comfy, packed_python, base_directory, master_folder(tmp_path), rig, MASTER_LACKS_CLASS="1"
    ) as master:
        prompt = slow("foreign", 2)
        prompt["strange"] = node("RuleForeign", images=out("work"))
        prompt["9"]["inputs"]["images"] = out("strange")
        answers: list[Any] = []
        with own_servers.silent_state():
            posting = threading.Thread(target=lambda: answers.append(master.server.post("/prompt", {"prompt": prompt})))
            posting.start()
            longest_s = 0.0
            while posting.is_alive():
                began = time.monotonic()
                master.server.get("/prompt")
                longest_s = max(longest_s, time.monotonic() - began)
        assert answers[0][0] == 400 and "RuleForeign" in str(answers[0][1])
        assert longest_s < 1.5
        assert "the cluster did not say within 3 s" in master.server.log()
