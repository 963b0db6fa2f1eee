"""The engine in the real engine process: pipe, blob store, shipping, with ComfyUI's own interpreter."""
from __future__ import annotations

import json
import queue
import sys
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from distributed_comfy.engine.host import EngineProcess
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.process import open_blobs
from distributed_comfy.engine.protocol import Failed, Finished, Progress
from distributed_comfy.messages import Capability, ItemResult, RunRequest, TensorRef
from distributed_comfy.transport.values import load_value
from tests.cluster_fixtures import THREADS
from tests.comfyui.comfy_process import PROJECT, Comfy
from tests.comfyui.plain_comfyui import PlainComfyUI
from tests.prompts import node, out


class Worker:
    """An engine process and what it says."""

    def __init__(self, options: EngineOptions) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.blobs = open_blobs(options)
        self.process = EngineProcess(options, self.events.put)
        self.capability: Capability = self.process.start(timeout_s=120)
        self.seen: list[Any] = []

    def run(self, prompt: dict[str, Any], *targets: str, **changes: Any) -> Finished | Failed:
        """Run to the claim's end."""
        facts: dict[str, Any] = {
            "claim_id": f"c{self.events.qsize()}-{len(self.seen)}", "job_id": "0123456789ab", "index": 0, "kind": "generate",
            "prompt": prompt, "targets": targets, "original_prompt": prompt,
        }  # fmt: skip
        self.process.run(RunRequest(**{**facts, **changes}))
        while True:
            event = self.events.get(timeout=60)
            self.seen.append(event)
            if isinstance(event, Finished | Failed):
                return event


@pytest.fixture(scope="module", params=["comfyui", "attach"])
def worker(request: pytest.FixtureRequest, redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("worker")
    if request.param == "attach":
        own = {"python": sys.executable, "comfyui_url": request.getfixturevalue("plain").url}
    else:
        comfy: Comfy = request.getfixturevalue("comfy")
        own = {"python": comfy.python, "comfyui_path": comfy.root, "comfyui_base_directory": request.getfixturevalue("base_directory")}
    options = EngineOptions(
        engine=request.param, worker="pc1-cpu", folder=folder / "work", log_file=folder / "engine.log",
        blob_url=redis_server.blob_url, cache_folder=folder / "cache", threads=THREADS, **own,
    )  # fmt: skip
    started = Worker(options)
    yield started
    started.process.close()


def finished(event: Finished | Failed) -> ItemResult:
    assert isinstance(event, Finished), event.error
    return event.result


def example(seed: int) -> dict[str, Any]:
    prompt = json.loads((PROJECT / "examples" / "txt2img_tiny.json").read_text())
    for beyond in ("6", "9", "10"):
        del prompt[beyond]
    prompt["5"]["inputs"] |= {"width": 64, "height": 64}
    prompt["7"]["inputs"] |= {"seed": seed, "steps": 2}
    return prompt


def test_it_starts_with_comfyuis_interpreter_and_tells_what_it_can(worker: Worker) -> None:
    assert "KSampler" in worker.capability.node_classes and worker.capability.engine == worker.process.options.engine


def test_an_items_images_arrive_as_plain_comfyui_makes_or_saves_them(worker: Worker, plain: PlainComfyUI) -> None:
    seed = 7 if worker.capability.engine == "comfyui" else 17  # what the plain ComfyUI sampled already shows no steps
    result = finished(worker.run({**example(seed), "9": node("DistributedSink", images=out("8"))}, "9"))
    (capture,) = result.captures
    assert isinstance(capture.value, TensorRef)
    images = load_value(worker.blobs, capture.value, as_torch=False)
    expected = plain.images(example(seed), "8")
    if worker.capability.engine == "attach":  # as its PNGs are read again
        expected = numpy.clip(255 * expected, 0, 255).astype(numpy.uint8).astype(numpy.float32) / numpy.float32(255)
    numpy.testing.assert_array_equal(images, expected)
    assert result.device_class == worker.capability.device_class and result.seconds > 0
    assert any(isinstance(event, Progress) and event.node_id == "7" for event in worker.seen)


def test_a_last_stage_saves_the_values_that_lie_in_the_blob_store(worker: Worker) -> None:
    item = finished(worker.run({**example(8), "9": node("DistributedSink", images=out("8"))}, "9"))
    prompt = {"9": node("DistributedSource", slots="images"), "10": node("SaveImage", images=out("9"), filename_prefix="tiny")}
    result = finished(worker.run(prompt, "10", kind="last", feed={"9": {"images": (item.captures[0].value,)}}, claim_id="last"))
    assert [(file.name, file.media_type, file.folder) for file in result.files] == [
        ("tiny_00001_.png", "image/png", "output"), ("tiny_00002_.png", "image/png", "output"),
    ]  # fmt: skip
    assert bytes(worker.blobs.get(result.files[0].blob))[1:4] == b"PNG"


def test_a_refusal_and_a_nodes_exception_cross_the_pipe(worker: Worker) -> None:
    prompt = {"noise": node("TinyNoise", size=8, batch_size=1, seed=3), "sink": node("DistributedSink", images=out("bad"))}
    for kind, code in (("ValueError", "node_failed"), ("OutOfMemoryError", "out_of_memory"), ("nonsense", "worker_lacks")):
        event = worker.run({**prompt, "bad": node("ProbeRaise", images=out("noise"), kind=kind)}, "sink", claim_id=f"bad-{kind}")
        assert isinstance(event, Failed) and event.error.code == code
