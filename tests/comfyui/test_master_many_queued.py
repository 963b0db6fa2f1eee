"""A long queue of prompts with collectors: what each of them costs the master's process while it waits."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_prompts import pictures, plain_work
from tests.comfyui.master_rig import Master, open_master

QUEUED = 60


@pytest.fixture(scope="module")
def master(
    comfy: Comfy, packed_python: str, base_directory: Path, comfyui_rig: Rig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Master]:
    folder = tmp_path_factory.mktemp("master")
    with open_master(comfy, packed_python, base_directory, folder, comfyui_rig, options={"participate": False}) as found:
        yield found


def test_prompts_that_wait_cost_neither_threads_nor_descriptors_each(master: Master) -> None:
    server = psutil.Process(master.server.running.pid)
    master.server.execute(pictures("warm", items=2))
    before, threads, descriptors = list(master.jobs()), server.num_threads(), server.num_fds()
    busy = master.server.queue(plain_work("busy", steps=10_000))
    for number in range(QUEUED):
        master.server.queue(pictures(f"queued {number}", items=2, seed=1000 * number, steps=5000))
    master.server.until(lambda: len(master.jobs()) == len(before) + QUEUED, 120.0)
    more_threads, more_descriptors = server.num_threads() - threads, server.num_fds() - descriptors
    assert more_threads < QUEUED / 2 and more_descriptors < QUEUED / 2, f"{more_threads} more threads, {more_descriptors} more descriptors"
    master.server.post("/queue", {"clear": True})
    master.server.until(lambda: {state.state for job, state in master.jobs().items() if job not in before} == {"cancelled"}, 60.0)
    master.server.post("/interrupt")
    master.server.wait(busy)
    master.server.execute(pictures("after all that", items=3, seed=5))
    assert master.recorded("after all that") == [5, 6, 7]
    master.server.until(lambda: not master.spools(), 20.0)
