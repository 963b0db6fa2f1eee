"""Prompts in API format as ComfyUI-Distributed's users have them: with its hidden inputs or without, and the node sets of its examples."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from tests.comfyui.comfy_process import Comfy
from tests.comfyui.plain_comfyui import PlainComfyUI
from tests.comfyui.server_rig import ComfyServer
from tests.comfyui.tiny_prompts import distributed, plain_item
from tests.command_line import CommandLine
from tests.prompts import node, out

HIDDEN: dict[str, Any] = {
    "multi_job_id": "exec_1_9", "is_worker": False, "master_url": "http://10.0.0.1:8188", "enabled_worker_ids": '["1", "2"]',
    "worker_batch_size": 1, "worker_id": "", "pass_through": False, "delegate_only": False,
}  # fmt: skip
"""What that pack writes into the prompts that it sends round."""
EXAMPLES = {
    "txt2img": "CheckpointLoaderSimple CLIPTextEncode EmptyLatentImage DistributedSeed KSampler VAEDecode DistributedCollector "
               "PreviewImage",
    "upscale": "LoadImage UpscaleModelLoader ImageUpscaleWithModel ControlNetLoader ControlNetApplyAdvanced CheckpointLoaderSimple "
               "CLIPTextEncode UltimateSDUpscaleDistributed PreviewImage",
    "upscale-video": "UNETLoader CLIPLoader VAELoader CLIPTextEncode UltimateSDUpscaleDistributed",
    "wan": "DistributedSeed RandomNoise SamplerCustomAdvanced VAEDecode DistributedCollector ImageBatchDivider CreateVideo SaveVideo",
    "wan-2.2_14b_t2v": "DistributedSeed KSamplerAdvanced VAEDecode DistributedCollector ImageBatchDivider CreateVideo SaveVideo",
}  # fmt: skip
"""Node classes of the five examples, without those of further packs (VHS)."""


@pytest.fixture(scope="module")
def running(comfy: Comfy, packed_python: str, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A ComfyUI with the pack and no worker: it does everything itself."""
    server = ComfyServer(comfy, packed_python, base_directory, CommandLine(tmp_path_factory.mktemp("before")))
    server.start(DC_HOST="pc1")
    server.wait_ready()
    yield server
    server.close()


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_node_sets_of_the_five_examples_are_known(running: ComfyServer, example: str) -> None:
    assert set(EXAMPLES[example].split()) <= running.get("/object_info").keys()


@pytest.mark.parametrize(
    ("seed", "more"),
    [(7, {}), (8, HIDDEN), (9, {**HIDDEN, "is_worker": True, "worker_id": "worker_0", "surprise": [1, 2]})],
    ids=["none", "master", "worker"],
)
def test_hidden_inputs_of_the_other_pack_change_nothing(
    running: ComfyServer, plain: PlainComfyUI, seed: int, more: dict[str, Any]
) -> None:
    """Each has a seed of its own, because ComfyUI would give what it has made of another's."""
    prompt = distributed(seed=seed)
    del prompt["9"]["inputs"]["load_balance"]
    prompt["9"]["inputs"] |= more
    prompt["6"]["inputs"] |= {name: more[name] for name in ("is_worker", "worker_id") if name in more}
    prompt["10"] = node("PreviewImage", images=out("9"))
    prompt["dump"] = node("TinyDump", images=out("9"), filename_prefix=f"seed{seed}")
    (running.base / "output").mkdir(exist_ok=True)
    entry = running.execute(prompt)
    ours, theirs = numpy.load(running.base / "output" / f"seed{seed}.npy"), plain.images(plain_item(seed=seed), "8")
    assert ours.dtype == numpy.float32 and ours.shape == theirs.shape and len(entry["outputs"]["10"]["images"]) == len(ours) == 2
    assert ours.tobytes() == theirs.tobytes()
    for number, shown in enumerate(entry["outputs"]["10"]["images"]):
        with Image.open(running.base / "temp" / shown["filename"]) as picture:
            assert numpy.array_equal(numpy.asarray(picture), (ours[number].clip(0, 1) * 255).astype(numpy.uint8))


def test_a_value_with_hidden_inputs_gives_its_default(running: ComfyServer) -> None:
    value = node("DistributedValue", default_value="0", worker_values='{"1": "5", "_type": "INT"}', is_worker=False, worker_id="")
    prompt = {
        "v": value, "name": node("DistributedModelName", text=out("v")),
        "empty": node("DistributedEmptyImage", height=8, width=8, channels=3),
        "cut": node("ImageBatchDivider", images=out("empty"), divide_by=2),
    }  # fmt: skip
    assert running.execute(prompt)["outputs"]["name"]["text"] == ["0"]
