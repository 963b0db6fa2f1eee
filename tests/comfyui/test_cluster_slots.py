"""A worker with three slots, a short look-around interval and previews; beside the two of the rig, told apart by its tag."""
from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster_rig import Rig, WorkerProcess
from tests.comfyui.tiny_prompts import distributed
from tests.prompts import node, out

log = logging.getLogger(__name__)

ITEMS = 8


@pytest.fixture(scope="module")
def wide(comfyui_rig: Rig) -> Iterator[WorkerProcess]:
    """The worker; it ends with this module, because the other tests count workers."""
    settings = {"slots": 3, "describe_interval_s": 1, "worker_tags": "wide", "comfyui_args": "--preview-method latent2rgb"}
    yield comfyui_rig.start("wide", **settings)[0]
    comfyui_rig.stop("wide")


def test_a_worker_with_three_slots_prepares_ahead_and_gives_the_same_bits(comfyui_rig: Rig, wide: WorkerProcess) -> None:
    expected = comfyui_rig.run(distributed(steps=20), items=ITEMS)
    running = comfyui_rig.begin(distributed(steps=20), items=ITEMS, tags=["wide"])
    running.until(lambda: (state := comfyui_rig.state("wide")) is not None and len(state.claims) == 3)
    report = running.wait()
    assert {result.worker for result in report.done.results.values()} == {"wide"}
    assert report.batch("9").tobytes() == expected.batch("9").tobytes()
    assert sorted(index for index, _, _ in comfyui_rig.executions(report.job_id)) == list(range(ITEMS + 1))


def test_an_engine_that_dies_with_three_claims_gives_all_of_them_back(comfyui_rig: Rig, wide: WorkerProcess) -> None:
    items = 4
    comfyui_rig.wait_idle()
    slow = distributed({"slow": node("ProbeSteps", images=out("8"), steps=20, stubborn=False, salt=0)}, "slow")
    expected = comfyui_rig.run(slow, items=items)
    running = comfyui_rig.begin(slow, items=items, tags=["wide"])
    job_id = running.queued()
    running.until(lambda: len(comfyui_rig.executions(job_id)) >= 2)
    killed, _, pid = comfyui_rig.executions(job_id)[-1]
    os.kill(pid, signal.SIGKILL)
    report = running.wait()
    assert report.batch("9").tobytes() == expected.batch("9").tobytes()
    executed = [index for index, _, _ in comfyui_rig.executions(job_id)]
    assert set(executed) == set(range(items + 1)) and executed.count(killed) == 2
    assert len(executed) <= items + 1 + 2, "beside the killed one at most one that was being shipped runs again"


def test_without_a_number_only_workers_that_can_run_the_prompt_get_an_item(comfyui_rig: Rig, wide: WorkerProcess) -> None:
    assert len(comfyui_rig.run(distributed(), tags=["wide"]).batches("9")) == 1
    assert len(comfyui_rig.run(distributed()).batches("9")) == 3


def test_a_model_added_to_an_idle_worker_starts_the_job_that_waits_for_it(
    comfyui_rig: Rig, wide: WorkerProcess, base_directory: Path
) -> None:
    folder = base_directory / "models" / "vae" / "cluster"
    folder.mkdir()
    prompt = distributed()
    prompt["2"]["inputs"]["vae_name"] = "cluster/later.safetensors"
    running = comfyui_rig.begin(prompt, items=2, tags=["wide"], wait_s=30)
    job_id = running.queued()
    time.sleep(0.5)
    assert comfyui_rig.executions(job_id) == []
    shutil.copyfile(folder.parent / "tiny_taesd16.safetensors", folder / "later.safetensors")
    began = time.monotonic()
    running.until(lambda: comfyui_rig.executions(job_id))
    started_s = time.monotonic() - began
    report = running.wait()
    assert len(report.done.files) == 4
    assert report.batch("9").tobytes() == comfyui_rig.run(distributed(), items=2).batch("9").tobytes()
    assert started_s < 4, "looks around every second, and with the next sign of life"
    log.info("model added: the waiting job started after %.2f s", started_s)


def test_steps_and_previews_arrive_while_an_item_runs(comfyui_rig: Rig, wide: WorkerProcess) -> None:
    report = comfyui_rig.run(distributed(steps=100), items=1, tags=["wide"])
    steps = [step for step in report.steps if step.node_id == "7" and step.index == 0 and not step.preview]
    values = [step.value for step in steps]
    assert {step.worker for step in steps} == {"wide"} and {step.maximum for step in steps} == {100}
    assert len(values) >= 4 and values == sorted(values) and values[-1] == 100
    previews = [step.preview for step in report.steps if step.preview]
    assert previews and all(preview.startswith(b"\xff\xd8") for preview in previews)
