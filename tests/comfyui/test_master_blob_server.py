"""The server of tensors and files beside a master: it stays away while a node waits, and a long queue must not fill it."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.cluster_fixtures import open_rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.master_prompts import pictures, plain_work
from tests.comfyui.master_rig import open_master
from tests.comfyui.test_master_bad_days import OwnServers, master_folder, slow

IN_FRONT = 4
"""Jobs that are collected while their prompts wait; no worker can run these."""
BEHIND = 24
SIDE = 512
MEGABYTE = 2**20


def test_one_that_stays_away_fails_the_node_and_the_same_prompt_goes_on_when_it_is_back(
    comfy: Comfy, packed_python: str, base_directory: Path, cluster_servers: Any, tmp_path: Path
) -> None:
    servers = OwnServers(tmp_path, cluster_servers.program)
    try:
        with open_rig("builtin", servers, tmp_path / "workers") as rig, open_master(
            comfy, packed_python, base_directory, master_folder(tmp_path), rig, options={"participate": False}, DC_BLOB_AWAY_S="3"
        ) as master:
            prompt_id = master.server.queue(slow("away", 8))
            job = master.server.until(lambda: list(master.jobs()))[-1]
            master.server.until(lambda: master.server.log().count(f"job {job} item") >= 3)
            servers.blobs.kill()
            entry = master.server.wait(prompt_id, 60.0)
            kind, facts = entry["status"]["messages"][-1]
            assert kind == "execution_error" and facts["node_type"] == "DistributedCollector"
            assert "the blob server has not answered for" in facts["exception_message"], facts
            assert "run the same prompt again: what is finished is kept" in facts["exception_message"]
            servers.blobs.start()
            master.server.execute(slow("away", 8))
            assert master.recorded("away") == list(range(100, 108))
            here = int(re.findall(rf"goes on where job {job} stopped: (\d+) of 8 items are here", master.server.log())[-1])
            assert here >= 3
    finally:
        servers.close()


def test_a_long_queue_whose_first_jobs_wait_does_not_fill_it(
    comfy: Comfy, packed_python: str, base_directory: Path, cluster_servers: Any, tmp_path: Path
) -> None:
    servers = OwnServers(tmp_path, cluster_servers.program, "--maxmemory", f"{64 * MEGABYTE}", "--maxmemory-policy", "noeviction")
    assert BEHIND * 2 * SIDE * SIDE * 3 * 4 > 64 * MEGABYTE
    try:
        with open_rig("builtin", servers, tmp_path / "workers") as rig, open_master(
            comfy, packed_python, base_directory, master_folder(tmp_path), rig, options={"participate": False}
        ) as master:
            busy = master.server.queue(plain_work("busy", steps=10_000))
            for number in range(IN_FRONT):
                master.server.queue(pictures(f"in front {number}", items=2, seed=1000 * number))
            master.server.until(lambda: len(master.jobs()) == IN_FRONT)
            in_front = list(master.jobs())
            for number in range(BEHIND):
                master.server.queue(slow(f"behind {number}", 2, seed=1000 * number, milliseconds=100, side=SIDE))
            master.server.until(lambda: len(master.jobs()) == IN_FRONT + BEHIND, 60.0)
            states = master.server.until(
                lambda: (now := master.jobs()) and all(now[job].state == "done" for job in now if job not in in_front) and now, 60.0
            )
            assert all(states[job].state == "pending" for job in in_front), "nobody can run these but the master, which is busy"
            master.server.until(lambda: sum(rig.cluster.jobs.in_flight().values()) == 0, 10.0)
            master.server.post("/queue", {"clear": True})
            master.server.post("/interrupt")
            master.server.wait(busy)
    finally:
        servers.close()
