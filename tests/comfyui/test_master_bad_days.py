"""What may go wrong round a master: no worker, a worker that is killed, servers that go away, the master itself that dies."""
from __future__ import annotations

import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.blob_server import BlobServer
from tests.cluster_fixtures import open_rig
from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_prompts import upscale
from tests.comfyui.master_rig import open_master
from tests.prompts import node, out

SLOW_MS = 700


def slow(label: str, items: int, *, seed: int = 100, milliseconds: int = SLOW_MS, side: int = 16) -> dict[str, Any]:
    """A prompt of which a worker with the built-in engine can run every item."""
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


def master_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "master"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("participate", [True, False])
def test_with_nobody_alive_the_master_makes_all_of_it_and_says_so_once(
    comfy: Comfy, packed_python: str, base_directory: Path, cluster_servers: Any, tmp_path: Path, participate: bool
) -> None:
    with open_rig("builtin", cluster_servers, tmp_path / "workers", prefix=f"alone-{participate}:", names=()) as rig, open_master(
        comfy, packed_python, base_directory, master_folder(tmp_path), rig, options={"participate": participate}, DC_HOST="here"
    ) as master:
        master.server.execute(slow("alone", 4, milliseconds=10))
        assert master.recorded("alone") == [100, 101, 102, 103]
        assert master.workers_of(master.last_job()) == ["here-master"] * 4
        assert master.ran_here().count("RuleImage") == 4
        master.server.execute(slow("alone again", 2, milliseconds=10))
        assert master.recorded("alone again") == [100, 101]
        assert master.server.log().count("no live worker can run it") == 1


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


def test_a_master_that_was_killed_goes_on_where_it_stopped_when_the_prompt_comes_again(
    comfy: Comfy, packed_python: str, base_directory: Path, rig: Rig, tmp_path: Path
) -> None:
    with open_master(comfy, packed_python, base_directory, master_folder(tmp_path), rig, options={"participate": False}) as master:
        master.server.queue(slow("resumed", 8))
        job = master.server.until(lambda: list(master.jobs()))[-1]
        master.server.until(lambda: sum(state.state == "done" for state in rig.cluster.jobs.item_states(job).values()) >= 3)
        time.sleep(0.3)
        master.server.kill()
        master.restart()
        master.server.wait_ready()
        master.server.execute(slow("resumed", 8))
        assert master.recorded("resumed") == list(range(100, 108))
        assert f"goes on where job {job} stopped" in master.server.log()
        second = master.last_job()
        assert second != job and master.state(job) in ("cancelled", "done")  # workers went on for as long as its owner's lease
        assert len(rig.executions(second)) <= 5
        master.server.until(lambda: not master.spools(), 10.0)


def test_the_state_server_may_go_away_while_the_node_waits(
    comfy: Comfy, packed_python: str, base_directory: Path, own_servers: OwnServers, tmp_path: Path
) -> None:
    with open_rig("builtin", own_servers, tmp_path / "workers") as rig, open_master(
        comfy, packed_python, base_directory, master_folder(tmp_path), rig, options={"participate": False}
    ) as master:
        prompt_id = master.server.queue(slow("outage", 8))
        master.server.until(lambda: list(master.jobs()))
        master.server.until(lambda: running(rig, master.last_job()))
        own_servers.restart_state(away_s=3.0)
        assert master.server.wait(prompt_id)["status"]["status_str"] == "success"
        assert master.recorded("outage") == list(range(100, 108))


@pytest.mark.parametrize("participate", [True, False])
def test_without_a_server_at_acceptance_all_of_it_is_made_here(
    comfy: Comfy, packed_python: str, base_directory: Path, own_servers: OwnServers, tmp_path: Path, participate: bool
) -> None:
    with open_rig("builtin", own_servers, tmp_path / "workers", names=()) as rig, open_master(
        comfy, packed_python, base_directory, master_folder(tmp_path), rig, options={"participate": participate}
    ) as master:
        own_servers.stop_state()
        master.server.execute(slow("no server", 3, milliseconds=10))
        assert master.recorded("no server") == [100, 101, 102]
        assert master.server.log().count("is not distributed") == 1
        master.server.until(lambda: not master.spools(), 10.0)


def test_without_a_server_at_acceptance_an_upscale_is_made_here(
    comfy: Comfy, packed_python: str, base_directory: Path, own_servers: OwnServers, tmp_path: Path
) -> None:
    with open_rig("builtin", own_servers, tmp_path / "workers", names=()) as rig, open_master(
        comfy, packed_python, base_directory, master_folder(tmp_path), rig
    ) as master:
        there = master.images(upscale(2, seed=500), "up")
        own_servers.stop_state()
        master.server.post("/free", {"unload_models": True, "free_memory": True})  # nothing comes from ComfyUI's cache
        again = master.images(upscale(2, seed=500), "up")
        assert again.tobytes() == there.tobytes()


def test_a_state_server_that_comes_back_empty_gets_the_job_again(
    comfy: Comfy, packed_python: str, base_directory: Path, own_servers: OwnServers, tmp_path: Path
) -> None:
    with open_rig("builtin", own_servers, tmp_path / "workers") as rig, open_master(
        comfy, packed_python, base_directory, master_folder(tmp_path), rig, options={"participate": False}
    ) as master:
        prompt_id = master.server.queue(slow("wiped", 8))
        job = master.server.until(lambda: list(master.jobs()))[-1]
        master.server.until(lambda: master.server.log().count(f"job {job} item") >= 3)
        own_servers.wipe_state()
        assert master.server.wait(prompt_id)["status"]["status_str"] == "success"
        assert master.recorded("wiped") == list(range(100, 108))
        here = int(re.findall(rf"job {job} goes on: (\d+) of 8 items are here", master.server.log())[-1])
        assert here >= 3
        assert sum(state.worker != "" for state in rig.cluster.jobs.item_states(job).values()) == 8
        assert len(rig.executions(job)) <= 8 + 2  # what ran when the server went ran in vain


def test_a_cluster_that_stays_away_while_the_node_waits_leaves_the_rest_to_the_master(
    comfy: Comfy, packed_python: str, base_directory: Path, own_servers: OwnServers, tmp_path: Path
) -> None:
    with open_rig("builtin", own_servers, tmp_path / "workers") as rig, open_master(
        comfy, packed_python, base_directory, master_folder(tmp_path), rig, options={"participate": False}
    ) as master:
        prompt_id = master.server.queue(slow("away", 9))
        job = master.server.until(lambda: list(master.jobs()))[-1]
        master.server.until(lambda: master.server.log().count(f"job {job} item") >= 3)
        own_servers.stop_state()
        assert master.server.wait(prompt_id)["status"]["status_str"] == "success"
        assert master.recorded("away") == list(range(100, 109))
        told = rf"job {job} goes on in this ComfyUI alone, which makes the (\d+) of 9 items that are missing"
        (missing,) = map(int, re.findall(told, master.server.log()))
        assert missing <= 6 and master.ran_here().count("RuleSlow") == missing
        assert "is not distributed" not in master.server.log()


def test_a_clicked_interrupt_ends_the_wait_also_without_a_server(
    comfy: Comfy, packed_python: str, base_directory: Path, own_servers: OwnServers, tmp_path: Path
) -> None:
    with open_rig("builtin", own_servers, tmp_path / "workers") as rig, open_master(
        comfy, packed_python, base_directory, master_folder(tmp_path), rig, options={"participate": False}
    ) as master:
        prompt_id = master.server.queue(slow("never", 8, milliseconds=2000))
        master.server.until(lambda: list(master.jobs()))
        own_servers.stop_state()
        time.sleep(0.5)
        master.server.post("/interrupt")
        entry = master.server.wait(prompt_id, 5.0)
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
