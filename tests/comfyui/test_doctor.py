"""The doctor with a real ComfyUI: its engine starts and ends, a probe item comes back from each worker."""
from __future__ import annotations

import threading
from pathlib import Path

from distributed_comfy.orchestrator.doctor.engine import check_engine
from distributed_comfy.orchestrator.doctor.workers import check_workers
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.settings import read_settings
from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy


def test_the_engine_that_a_worker_would_use_starts(comfyui_rig: Rig, comfy: Comfy, tmp_path: Path) -> None:
    settings = read_settings(comfyui_path=comfy.root, comfyui_python=comfy.python, device="cpu", cache_dir=tmp_path)
    servers = Servers(comfyui_rig.cluster.redis_url, comfyui_rig.cluster.blob_url, embedded=False)
    found = check_engine(settings, servers, threading.Event())
    assert found.level == "ok" and found.found.startswith("comfyui 0."), found
    broken = check_engine(settings.model_copy(update={"comfyui_args": "--no-such-flag"}), servers, threading.Event())
    assert broken.level == "fail" and "unrecognized arguments: --no-such-flag" in broken.found, "ComfyUI's own words"


def test_a_probe_item_comes_back_right_from_each_worker(comfyui_rig: Rig) -> None:
    comfyui_rig.wait_idle()
    found = {finding.check: finding for finding in check_workers(comfyui_rig.cluster, threading.Event())}
    for name in ("one", "two"):
        assert "a probe item came back right in" in found[f"worker {name}"].found, found
    uneven = found["workers: node packs"]
    assert uneven.level == "warn" and "UnevenOne" in uneven.found, "the node pack of tests in which each has a class that the other lacks"
    assert "workers: differences" not in found and "workers: versions" not in found
