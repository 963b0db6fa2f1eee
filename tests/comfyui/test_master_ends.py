"""ComfyUI ends while its jobs run: they end with it, what was finished waits, and nothing is left behind."""
from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.cluster_fixtures import open_rig
from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_rig import open_master
from tests.comfyui.test_master_bad_days import OwnServers, master_folder, own_servers, rig, slow  # noqa: F401 - fixtures, too
from tests.comfyui.tiny_prompts import distributed

ENDS_S = 45.0
"""Jobs have 5 s, and the session 30 s."""


def test_ctrl_c_cancels_the_jobs_and_the_next_start_goes_on_with_them(
    comfy: Comfy, packed_python: str, base_directory: Path, rig: Rig, tmp_path: Path  # noqa: F811
) -> None:
    with open_master(comfy, packed_python, base_directory, master_folder(tmp_path), rig, options={"participate": False}) as master:
        master.server.queue(slow("ended", 8))
        job = master.server.until(lambda: list(master.jobs()))[-1]
        waiting = [master.server.queue(slow(f"waiting {number}", 2, seed=1000 * number)) for number in range(1, 9)]
        master.server.until(lambda: len(master.jobs()) == 1 + len(waiting))
        master.server.until(lambda: sum(state.state == "done" for state in rig.cluster.jobs.item_states(job).values()) >= 3)
        time.sleep(0.3)
        began = time.monotonic()
        assert master.server.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < ENDS_S
        assert {state.state for state in master.jobs().values()} <= {"cancelled", "done"}
        assert master.state(job) == "cancelled"
        assert "Traceback" not in master.server.log().rpartition("Stopped server")[2]
        assert master.server.line.left_running() == []
        master.restart()
        master.server.execute(slow("ended", 8))
        assert master.recorded("ended") == list(range(100, 108))
        assert f"goes on where job {job} stopped" in master.server.log()
        assert len(rig.executions(master.last_job())) <= 5


def test_ctrl_c_while_an_item_samples_here_ends_without_an_abort(
    comfy: Comfy, packed_python: str, base_directory: Path, rig: Rig, tmp_path: Path  # noqa: F811
) -> None:
    with open_master(comfy, packed_python, base_directory, master_folder(tmp_path), rig) as master:
        master.server.queue(distributed(seed=100, steps=2000))
        job = master.server.until(lambda: list(master.jobs()))[-1]
        master.server.until(lambda: any(state.state == "running" for state in rig.cluster.jobs.item_states(job).values()), 60.0)
        time.sleep(3.0)
        assert master.server.stop(signal.SIGINT) == 0
        assert "terminate called" not in master.server.log() and "Traceback" not in master.server.log().rpartition("Stopped server")[2]
        assert master.state(job) == "cancelled"


def test_ctrl_c_does_not_wait_for_a_server_that_is_silent(
    comfy: Comfy, packed_python: str, base_directory: Path, own_servers: OwnServers, tmp_path: Path  # noqa: F811
) -> None:
    with open_rig("builtin", own_servers, tmp_path / "workers") as found, open_master(
        comfy, packed_python, base_directory, master_folder(tmp_path), found, options={"participate": False}
    ) as master:
        master.server.queue(slow("silent", 8))
        master.server.until(lambda: list(master.jobs()))
        own_servers.stop_state()
        time.sleep(2.0)
        began = time.monotonic()
        assert master.server.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < ENDS_S
        assert "Traceback" not in master.server.log().rpartition("Stopped server")[2]
        assert master.server.line.left_running() == []


def test_sigterm_leaves_the_job_to_its_lease_and_no_process(
    comfy: Comfy, packed_python: str, base_directory: Path, rig: Rig, tmp_path: Path  # noqa: F811
) -> None:
    with open_master(comfy, packed_python, base_directory, master_folder(tmp_path), rig, options={"participate": False}) as master:
        master.server.queue(slow("terminated", 40))
        job = master.server.until(lambda: list(master.jobs()))[-1]
        master.server.until(lambda: sum(state.state == "done" for state in rig.cluster.jobs.item_states(job).values()) >= 2)
        assert master.server.stop(signal.SIGTERM) == -signal.SIGTERM
        assert master.server.line.left_running() == []
        assert "Traceback" not in master.server.log().rpartition("connected within")[2]
        master.server.until(lambda: master.state(job) == "parked", 30.0)
