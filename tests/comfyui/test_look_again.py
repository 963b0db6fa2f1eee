"""A model that was just put there is found at once where a worker is told to look, and a job that waits for it starts."""
from __future__ import annotations

import shutil
from pathlib import Path

from tests.cluster_rig import Rig
from tests.comfyui.tiny_prompts import distributed


def test_a_waiting_job_starts_when_workers_are_told_to_look(comfyui_rig: Rig, base_directory: Path) -> None:
    prompt = distributed(seed=70)
    known = prompt["2"]["inputs"]["vae_name"]
    prompt["2"]["inputs"]["vae_name"] = "just-arrived.safetensors"
    job = comfyui_rig.begin(prompt, items=2, wait_s=60)
    job.queued()
    new = base_directory / "models" / "vae" / "just-arrived.safetensors"
    try:
        shutil.copy(base_directory / "models" / "vae" / known, new)
        assert comfyui_rig.cluster.workers.look("one") and comfyui_rig.cluster.workers.look("two")
        assert len(job.wait(timeout_s=40).done.files) > 0, "before the interval of 60 s"
    finally:
        new.unlink(missing_ok=True)
