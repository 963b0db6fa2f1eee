"""A worker that drives a running ComfyUI, beside one with a tree of its own, on one cluster."""
from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from distributed_comfy.errors import JobFailed
from distributed_comfy.orchestrator.doctor.workers import check_workers
from distributed_comfy.settings import read_settings
from tests.cluster_fixtures import THREADS
from tests.cluster_rig import JobReport, Rig
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.plain_comfyui import PlainComfyUI, plain_comfyui
from tests.comfyui.tiny_prompts import distributed, plain_item
from tests.partition_proxy import PartitionProxy, network_to
from tests.prompts import node, out

ITEMS = 6
NOISE = {"noise": node("TinyNoise", size=16, batch_size=1, seed=out("seed")), "seed": node("DistributedSeed", seed=5)}


def slow_noise(steps: int = 25) -> dict[str, Any]:
    """Half a second for each item."""
    slow = node("ProbeSteps", images=out("noise"), steps=steps, stubborn=False, salt=0)
    return {**NOISE, "slow": slow, "collect": node("DistributedCollector", images=out("slow"), load_balance=False)}


def rounded(images: Any) -> Any:
    """Images as a PNG holds them, read again."""
    return numpy.clip(255 * images, 0, 255).astype(numpy.uint8).astype(numpy.float32) / numpy.float32(255)


@pytest.fixture(scope="module")
def pair(comfy: Comfy, base_directory: Path, plain: PlainComfyUI, cluster_servers: Any, tmp_path_factory: Any) -> Iterator[Rig]:
    """Workers ``headless`` and ``attached``; the second one drives the plain ComfyUI."""
    from tasks.cluster import open_cluster

    folder = tmp_path_factory.mktemp("attach-rig")
    settings = read_settings(key_prefix="attach-rig:", cache_dir=folder / "cache")
    cluster = open_cluster(settings, cluster_servers.state_url, cluster_servers.blob_url)
    environment = {
        "DC_THREADS": str(THREADS), "COMFYUI_PATH": str(comfy.root), "DC_COMFYUI_PYTHON": comfy.python,
        "DC_COMFYUI_BASE_DIRECTORY": str(base_directory),
    }  # fmt: skip
    rig = Rig("comfyui", cluster, folder, environment)
    try:
        rig.start("attached", engine="attach", comfyui_url=plain.url, worker_tags="attached")
        rig.start("headless")
        yield rig
    finally:
        rig.close()
        cluster.close()


def ask(plain: PlainComfyUI, path: str, body: Any = None) -> Any:
    """A request of somebody else to that ComfyUI."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(plain.url + path, data, {"Content-Type": "application/json"}), timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def foreign_prompt(plain: PlainComfyUI, seconds: float) -> str:
    """Somebody else's prompt in that queue; its id."""
    prompt = {
        "n": node("TinyNoise", size=8, batch_size=1, seed=uuid.uuid4().int % 2**31),
        "s": node("ProbeSteps", images=out("n"), steps=int(seconds / 0.02), stubborn=False, salt=0),
        "p": node("PreviewImage", images=out("s")),
    }  # fmt: skip
    prompt_id = str(uuid.uuid4())
    ask(plain, "/prompt", {"prompt": prompt, "prompt_id": prompt_id})
    return prompt_id


def until(what: Callable[[], Any], timeout_s: float = 60) -> None:
    """Wait for something true."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)


def by(report: JobReport, worker: str) -> list[int]:
    """Items that a worker ran."""
    return [index for index, result in report.done.results.items() if result.worker == worker]


def test_both_kinds_of_workers_share_a_job_and_the_attached_ones_images_are_the_exact_ones_rounded(
    pair: Rig, plain: PlainComfyUI
) -> None:
    prompt = distributed({}, "8", seed=300)
    report = pair.run(prompt, items=ITEMS)
    assert by(report, "attached") and by(report, "headless")
    for index, images in enumerate(report.batches("9")):
        exact = plain.images(plain_item({}, "8", seed=300 + index), "8")
        expected = rounded(exact) if index in by(report, "attached") else exact
        numpy.testing.assert_array_equal(images, expected, err_msg=f"item {index}")
    classes = {result.device_class for result in report.done.results.values() if result.worker == "attached"}
    assert [name.startswith("attach: cpu, torch 2.") and name.endswith("images of 8 bits") for name in classes] == [True]
    assert len(report.done.files) == 2 * ITEMS, "the last stage saved what all items gave"


def test_the_same_job_twice_gives_complete_results_both_times(pair: Rig) -> None:
    prompt = distributed({}, "8", seed=320)
    prompt["11"] = node("SaveImage", images=out("8"), filename_prefix="sub/before")
    reports = [pair.run(prompt, items=2, tags=["attached"]) for _ in range(2)]
    for report in reports:
        assert sorted(file.name for file in report.done.files) == [
            "sub/before_00001_.png", "sub/before_00002_.png", *[f"tiny_{number:05}_.png" for number in range(1, 5)],
        ]  # fmt: skip
        assert by(report, "headless") == []
    assert reports[0].batch("9").tobytes() == reports[1].batch("9").tobytes()


def test_files_of_output_nodes_are_those_of_plain_comfyui_byte_for_byte_in_name_and_metadata(pair: Rig, plain: PlainComfyUI) -> None:
    prompt = {**plain_item({}, "8", seed=5), "10": node("SaveImage", images=out("8"), filename_prefix="of-attach")}
    entry = plain.execute(prompt)
    report = pair.run(prompt, tags=["attached"])
    theirs = [(plain.output / image["filename"]).read_bytes() for image in entry["outputs"]["10"]["images"]]
    assert [file.path.read_bytes() for file in report.done.files] == theirs
    assert report.done.results[0].outputs == entry["outputs"]


def test_a_last_stage_on_an_attached_comfyui_gets_the_images_of_all_items(pair: Rig) -> None:
    prompt = {**NOISE, "collect": node("DistributedCollector", images=out("noise"), load_balance=False)}
    prompt["record"] = node("RuleRecord", images=out("collect"), label="last")
    report = pair.run(prompt, items=5, tags=["attached"])
    given = numpy.array(report.record("last")["images"], numpy.float32)
    assert report.done.results[5].worker == "attached" and given.shape == (5, 16, 16, 3)
    numpy.testing.assert_array_equal(given, report.batch("collect"))


def test_masks_latents_numbers_and_texts_travel_as_far_as_said(pair: Rig) -> None:
    prompt = {
        "seed": node("DistributedSeed", seed=3), "noise": node("TinyNoise", size=16, batch_size=2, seed=out("seed")),
        "mask": node("ImageToMask", image=out("noise"), channel="red"),
        "vae": node("VAELoader", vae_name="tiny_taesd16.safetensors"), "code": node("VAEEncode", pixels=out("noise"), vae=out("vae")),
        "split": node("RuleSplit", seed=out("seed")),
        "collect": node("DistributedCollector", images=out("noise"), masks=out("mask"), latents=out("code"), load_balance=False),
        "record": node(
            "RuleRecord", label="got", images=out("collect", 0), latent=out("collect", 2), mask=out("collect", 3), number=out("split", 4),
            real=out("split", 5), text=out("split", 6),
        ),
    }  # fmt: skip
    report = pair.run(prompt, items=2, tags=["attached"])
    got = report.record("got")
    assert numpy.array(got["latent"]["samples"]).shape[0] == 4
    assert (got["number"], got["text"]) == (3, "seed 3 ✓") and got["real"] == pytest.approx(1.0)
    numpy.testing.assert_array_equal(numpy.array(got["mask"], numpy.float32), numpy.array(got["images"], numpy.float32)[..., 0])
    assert report.batches("collect", "latents")[0]["samples"].dtype == numpy.float32


def test_what_an_attached_comfyui_cannot_carry_goes_to_another_worker(pair: Rig) -> None:
    prompt = {
        "seed": node("DistributedSeed", seed=3), "split": node("RuleSplit", seed=out("seed")),
        "collect": node("DistributedCollector", audio=out("split", 3), load_balance=False),
    }  # fmt: skip
    report = pair.run(prompt, items=4)
    assert by(report, "attached") == [], "it does not offer to capture audio"
    batch_index = {**prompt, "collect": node("DistributedCollector", latents=out("split", 2), load_balance=False)}
    report = pair.run(batch_index, items=4)
    assert len(by(report, "headless")) == 4, "a latent with a batch index is known only when it is there"


def test_the_doctors_probe_comes_back_from_an_attached_comfyui(pair: Rig) -> None:
    pair.wait_idle()
    found = {finding.check: finding for finding in check_workers(pair.cluster, threading.Event())}
    assert "attach 0." in found["worker attached"].found and "a probe item came back right in" in found["worker attached"].found


def test_a_nodes_exception_ends_the_job_with_node_class_and_traceback(pair: Rig) -> None:
    prompt = {**slow_noise(), "slow": node("ProbeRaise", images=out("noise"), kind="ValueError")}
    error = pair.run(prompt, items=1, tags=["attached"]).error
    assert isinstance(error, JobFailed) and "node slow (ProbeRaise) raised ValueError: no such thing" in str(error)


def test_a_prompt_of_somebody_else_is_waited_for_and_shown_as_a_queue(pair: Rig, plain: PlainComfyUI) -> None:
    foreign = foreign_prompt(plain, 2.0)
    began = time.monotonic()
    report = pair.run(slow_noise(1), items=1, tags=["attached"])
    assert time.monotonic() - began > 1.5
    assert ask(plain, f"/history/{foreign}")[foreign]["status"]["status_str"] == "success", "it was left alone"
    first = report.steps[0]
    assert (first.node_id, first.value, first.maximum) == ("queue", 0, 1)


def test_a_cancelled_job_ends_its_own_prompt_and_no_other(pair: Rig, plain: PlainComfyUI) -> None:
    foreign = foreign_prompt(plain, 2.0)
    waiting = pair.begin(slow_noise(), items=1, tags=["attached"])
    waiting.queued()
    waiting.until(lambda: len(ask(plain, "/queue")["queue_pending"]) == 1)
    waiting.stop.set()
    waiting.wait()
    until(lambda: not ask(plain, "/queue")["queue_pending"])
    assert ask(plain, "/queue")["queue_running"], "the other one runs on"
    pair.wait_idle()
    until(lambda: foreign in ask(plain, "/history"))
    running = pair.begin(slow_noise(2000), items=1, tags=["attached"])
    running.until(lambda: any(step.node_id == "slow" for step in running.report.steps))
    running.stop.set()
    running.wait()
    until(lambda: not ask(plain, "/queue")["queue_running"], timeout_s=5)
    pair.wait_idle()
    assert len(pair.run(slow_noise(1), items=2, tags=["attached"]).batches("collect")) == 2


def test_a_prompt_that_somebody_interrupts_over_there_runs_again(pair: Rig, plain: PlainComfyUI) -> None:
    running = pair.begin(slow_noise(60), items=1, tags=["attached"])
    running.until(lambda: any(step.node_id == "slow" for step in running.report.steps))
    ask(plain, "/interrupt", {})
    report = running.wait()
    assert len(report.batches("collect")) == 1 and len(pair.executions(report.job_id)) == 2


def test_a_comfyui_that_dies_costs_its_item_a_second_execution_and_is_awaited(
    pair: Rig, comfy: Comfy, base_directory: Path, tmp_path: Path
) -> None:
    with plain_comfyui(comfy.root, comfy.python, base_directory, tmp_path / "first", threads=THREADS) as server:
        pair.start("mortal", engine="attach", comfyui_url=server.url, worker_tags="mortal")
        try:
            running = pair.begin(slow_noise(60), items=3)
            running.until(lambda: any(step.worker == "mortal" and step.node_id == "slow" for step in running.report.steps))
            os.kill(server.pid, signal.SIGKILL)
            report = running.wait()
            assert len(report.batches("collect")) == 3
            assert len(pair.executions(report.job_id)) == 4, "the item that was lost ran again, elsewhere"
            assert "mortal" not in {result.worker for result in report.done.results.values()}
        finally:
            mortal = pair.workers["mortal"]
        port = int(server.url.rpartition(":")[2])
        assert "does not answer: ConnectionRefusedError" in mortal.log()
        with plain_comfyui(comfy.root, comfy.python, base_directory, tmp_path / "second", threads=THREADS, port=port):
            until(lambda: (state := pair.state("mortal")) is not None and state.state == "idle")
            assert by(pair.run(slow_noise(1), items=1, tags=["mortal"]), "mortal") == [0]
            pair.stop("mortal")


@pytest.fixture(scope="module")
def network(pair: Rig, plain: PlainComfyUI) -> Iterator[PartitionProxy]:
    """The network between worker ``far`` and the plain ComfyUI."""
    with network_to(plain.url.replace("http://", "redis://")) as proxy:
        pair.start("far", engine="attach", comfyui_url=f"http://127.0.0.1:{proxy.port}", worker_tags="far", describe_interval_s=1)
        yield proxy
        pair.stop("far")


@pytest.mark.parametrize("cut", ["refuse", "stop"])
def test_a_cut_connection_neither_loses_nor_doubles_an_item(pair: Rig, network: PartitionProxy, plain: PlainComfyUI, cut: str) -> None:
    expected = pair.run(slow_noise(40), items=2, tags=["attached"])
    running = pair.begin(slow_noise(41), items=2, tags=["far"])
    running.until(lambda: any(step.node_id == "slow" and step.value > 3 for step in running.report.steps))
    getattr(network, cut)()
    time.sleep(1.5)  # the prompt ends meanwhile
    network.go_on()
    report = running.wait()
    assert report.batch("collect").tobytes() == expected.batch("collect").tobytes()
    assert len(pair.executions(report.job_id)) == 2
    assert ask(plain, "/queue") == {"queue_running": [], "queue_pending": []}
