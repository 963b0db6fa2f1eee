"""The built-in nodes against the real ones: the same prompts through both engines, each in its own process, compared bit by bit."""
from __future__ import annotations

import hashlib
import itertools
import json
import queue
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from PIL import Image

from distributed_comfy.engine.host import EngineProcess, HostEvent
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.protocol import Failed, Finished
from distributed_comfy.errors import ItemError
from distributed_comfy.messages import Capability, FileRef, InputFile, ItemResult, Prompt, RunRequest
from distributed_comfy.transport.files import InputCache, fetch_file
from distributed_comfy.transport.redis_blobs import RedisBlobStore
from distributed_comfy.transport.values import load_value
from tests.comfyui.comfy_process import Comfy
from tests.conftest import RedisServer
from tests.prompts import node, out

SHARED = ("EmptyImage", "ImageBatch", "ImageInvert", "ImageScale", "LoadImage", "PreviewImage", "SaveImage")


@dataclass
class Runner:
    """One engine process that runs prompts one after the other."""

    options: EngineOptions
    blobs: RedisBlobStore
    ended: queue.SimpleQueue[Finished | Failed] = field(default_factory=queue.SimpleQueue)
    claims: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.process = EngineProcess(self.options, self._hear)
        self.capability: Capability = self.process.start(timeout_s=200)

    def _hear(self, event: HostEvent) -> None:
        if isinstance(event, (Finished, Failed)):
            self.ended.put(event)

    def end(self, prompt: Prompt, *targets: str, **facts: Any) -> Finished | Failed:
        claim_id = f"claim{next(self.claims)}"
        known = {"claim_id": claim_id, "job_id": self.options.engine, "index": 0, "kind": "whole", "original_prompt": prompt}
        self.process.run(RunRequest(**{**known, "prompt": prompt, "targets": targets, **facts}))
        return self.ended.get(timeout=60)

    def run(self, prompt: Prompt, *targets: str, **facts: Any) -> ItemResult:
        end = self.end(prompt, *targets, **facts)
        assert isinstance(end, Finished), end
        return end.result

    def arrays(self, prompt: Prompt, *targets: str, **facts: Any) -> dict[str, Any]:
        captures = self.run(prompt, *targets, **facts).captures
        return {capture.node_id: load_value(self.blobs, capture.value, as_torch=False) for capture in captures}


@dataclass
class Pair:
    """Both engines."""

    real: Runner
    ours: Runner

    def same(self, prompt: Prompt, *targets: str, **facts: Any) -> dict[str, Any]:
        """What the sinks took, after both engines took the same bits."""
        real, ours = (runner.arrays(prompt, *targets, **facts) for runner in (self.real, self.ours))
        assert real.keys() == ours.keys() == set(targets)
        for sink, expected in real.items():
            assert (ours[sink].dtype, ours[sink].shape) == (expected.dtype, expected.shape), sink
            assert np.array_equal(ours[sink], expected), f"{sink}: {np.abs(ours[sink] - expected).max()}"
        return real

    def bring(self, path: Path, node_id: str, name: str = "") -> InputFile:
        """A file in both caches, as an input of LoadImage."""
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        blob = self.ours.blobs.put(f"input:{digest}", [content])
        ref = FileRef(name or path.name, "image/png", digest, len(content), blob, "input")
        for runner in (self.real, self.ours):
            InputCache(runner.options.cache_folder).fetch(runner.blobs, ref)
        return InputFile(node_id, "image", ref)


@pytest.fixture(scope="module")
def pair(comfy: Comfy, base_directory: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    with redis.Redis.from_url(redis_server.blob_url) as client:
        blobs = RedisBlobStore(client, prefix="pair:", chunk_bytes=2**20, ttl_s=600)

        def runner(engine: Any, python: str) -> Runner:
            options = EngineOptions(
                engine, f"w-{engine}", python, folder / engine, folder / f"{engine}.log", redis_server.blob_url, key_prefix="pair:",
                cache_folder=folder / "cache", comfyui_path=comfy.root, comfyui_base_directory=base_directory,
                threads=1,  # as the built-in engine always has: the last bits of a scaled image depend on it
            )  # fmt: skip
            return Runner(options, blobs)

        pair = Pair(runner("comfyui", comfy.python), runner("builtin", sys.executable))
        yield pair
        for engine in (pair.real, pair.ours):
            engine.process.kill()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture with every value in it, of an awkward size."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(7).integers(0, 256, (37, 61, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("color", [0, 0xFFFFFF, 0x123456, 0x7F80FE])
def test_an_empty_image_has_the_same_colour(pair: Pair, color: int) -> None:
    prompt = {
        "1": node("EmptyImage", width=5, height=3, batch_size=2, color=color),
        "2": node("ImageInvert", image=out("1")),
        "8": node("DistributedSink", images=out("1")),
        "9": node("DistributedSink", images=out("2")),
    }
    assert pair.same(prompt, "8", "9")["9"].shape == (2, 3, 5, 3)


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop", ["disabled", "center"])
def test_scaling_gives_the_same_bits(pair: Pair, photo: Path, method: str, crop: str) -> None:
    sizes = [(61, 37), (20, 50), (50, 20), (123, 64), (0, 30), (33, 0), (0, 0), (1, 1)]
    prompt = {"1": node("LoadImage", image="photo.png")}
    for number, (width, height) in enumerate(sizes):
        prompt[f"s{number}"] = node("ImageScale", image=out("1"), upscale_method=method, width=width, height=height, crop=crop)
        prompt[f"t{number}"] = node("DistributedSink", images=out(f"s{number}"))
    targets = [f"t{number}" for number in range(len(sizes))]
    pair.same(prompt, *targets, input_files=(pair.bring(photo, "1"),))


def test_a_batch_takes_the_size_of_its_first_images(pair: Pair, photo: Path) -> None:
    prompt = {
        "1": node("LoadImage", image="photo.png"),
        "2": node("EmptyImage", width=40, height=40, batch_size=2, color=0x336699),
        "3": node("ImageBatch", image1=out("1"), image2=out("2")),
        "4": node("ImageBatch", image1=out("2"), image2=out("1")),
        "5": node("ImageBatch", image1=out("4"), image2=out("4")),
        **{f"9{n}": node("DistributedSink", images=out(n)) for n in ("3", "4", "5")},
    }
    pair.same(prompt, "93", "94", "95", input_files=(pair.bring(photo, "1"),))


def pictures(folder: Path) -> list[Path]:
    """Files of every kind that LoadImage treats in its own way."""
    generator = np.random.default_rng(3)

    def noise(*shape: int, kind: Any = np.uint8) -> Any:
        return generator.integers(0, np.iinfo(kind).max, shape, dtype=kind)

    rgb, rgba = Image.fromarray(noise(9, 7, 3)), Image.fromarray(noise(9, 7, 4))
    rgb.save(folder / "rgb.png")
    rgba.save(folder / "alpha.png")
    rgba.convert("LA").save(folder / "grey-alpha.png")
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("1").save(folder / "bits.png")
    rgb.convert("P").save(folder / "palette.png")
    rgb.convert("P").save(folder / "transparent.png", transparency=3)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise(9, 7, kind=np.uint16)).save(folder / "sixteen.png")
    Image.fromarray(noise(9, 7, kind=np.int32) // 2**16).save(folder / "integers.tiff")
    rgb.save(folder / "picture.webp", lossless=True)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    rgb.save(folder / "turned.jpg", exif=turned)
    frames = [Image.fromarray(noise(9, 7, 3)).convert("P") for _ in range(3)]
    frames[0].save(folder / "frames.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "frames.webp", save_all=True, append_images=frames[1:], lossless=True)
    return sorted(folder.iterdir())


def test_every_kind_of_file_is_loaded_the_same(pair: Pair, tmp_path: Path) -> None:
    prompt: Prompt = {}
    files, targets = [], []
    for number, path in enumerate(pictures(tmp_path)):
        prompt[f"l{number}"] = node("LoadImage", image=path.name)
        for slot, kind in enumerate(("image", "mask")):
            targets.append(f"{kind} of {path.name}")
            prompt[targets[-1]] = node("DistributedSink", value=out(f"l{number}", slot))
        files.append(pair.bring(path, f"l{number}"))
    shapes = {sink: array.shape for sink, array in pair.same(prompt, *targets, input_files=tuple(files)).items()}
    assert shapes["image of frames.gif"] == (3, 9, 7, 3)
    assert shapes["image of turned.jpg"] == (1, 7, 9, 3)
    assert shapes["mask of alpha.png"] == (1, 9, 7)
    assert shapes["mask of rgb.png"] == (1, 64, 64)


@pytest.mark.parametrize("prefix", ["ComfyUI", "a/b c/x_%width%x%height%", "x_%batch_num%_y", "x.y", "%year%/z"])
def test_saved_files_have_the_same_names_bytes_and_metadata(pair: Pair, photo: Path, tmp_path: Path, prefix: str) -> None:
    prompt = {
        "1": node("LoadImage", image="photo.png"),
        "2": node("ImageBatch", image1=out("1"), image2=out("1")),
        "3": node("SaveImage", images=out("2"), filename_prefix=prefix),
    }
    original: Prompt = {"1": node("LoadImage", image="photo.png"), "7": node("DistributedCollector", images=out("1"))}
    facts = {"input_files": (pair.bring(photo, "1"),), "original_prompt": original, "extra_pnginfo": {"workflow": {"id": "ü"}}}
    results = [runner.run(prompt, "3", **facts) for runner in (pair.real, pair.ours)]
    assert results[0].outputs == results[1].outputs
    assert [(f.name, f.sha256, f.media_type) for f in results[0].files] == [(f.name, f.sha256, f.media_type) for f in results[1].files]
    assert len(results[0].files) == 2
    with Image.open(fetch_file(pair.ours.blobs, results[1].files[0], tmp_path)) as saved:
        assert {key: json.loads(text) for key, text in saved.info.items()} == {"prompt": original, "workflow": {"id": "ü"}}


def test_previews_differ_by_five_random_letters_only(pair: Pair) -> None:
    prompt = {"1": node("EmptyImage", width=8, height=8, batch_size=1, color=1), "3": node("PreviewImage", images=out("1"))}
    results = [runner.run(prompt, "3") for runner in (pair.real, pair.ours)]
    for result in results:
        ((entry,),) = result.outputs["3"].values()
        assert re.fullmatch(r"ComfyUI_temp_[a-z]{5}_00001_\.png", entry["filename"])
        assert (entry["type"], result.files[0].folder) == ("temp", "temp")
    assert results[0].files[0].sha256 == results[1].files[0].sha256


WRONG: dict[str, Prompt] = {
    "too small": {"1": node("EmptyImage", width=0, height=8, batch_size=1, color=0)},
    "too big": {"1": node("EmptyImage", width=8, height=8, batch_size=9999, color=0)},
    "no number": {"1": node("EmptyImage", width="wide", height=8, batch_size=1, color=0)},
    "missing": {"1": node("EmptyImage", width=8, height=8, batch_size=1)},
    "type": {"1": node("ImageInvert", image=out("2")), "2": node("DistributedSeed", seed=1)},
    "link": {"1": node("ImageInvert", image=["2"]), "2": node("EmptyImage", width=8, height=8, batch_size=1, color=0)},
    "list": {"1": node("ImageScale", image=out("2"), upscale_method="magic", width=8, height=8, crop="disabled"),
             "2": node("EmptyImage", width=8, height=8, batch_size=1, color=0)},
    "class": {"1": node("NoSuchNode")},
    "file": {"1": node("LoadImage", image="no such file.png")},
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_prompt_is_refused_with_the_same_error_types(pair: Pair, case: str) -> None:
    prompt = {**WRONG[case], "3": node("SaveImage", images=out("1"), filename_prefix="x")}
    ends = [runner.end(prompt, "3") for runner in (pair.real, pair.ours)]
    errors = [end.error for end in ends if isinstance(end, Failed)]
    assert len(errors) == 2
    assert type(errors[0]) is type(errors[1]), errors
    assert all(isinstance(error, ItemError) for error in errors)
    kinds = [
        {node_id: [reason["type"] for reason in entry["errors"]] for node_id, entry in error.fields.get("node_errors", {}).items()}
        for error in errors
    ]
    assert kinds[0] == kinds[1]


def test_both_engines_declare_the_same_of_these_nodes(pair: Pair) -> None:
    real, ours = pair.real.capability, pair.ours.capability
    for name in SHARED:
        assert real.output_types.get(name, ()) == ours.output_types[name]
        assert (name in real.output_classes) == (name in ours.output_classes)
        assert real.file_inputs.get(name) == ours.file_inputs.get(name)
        assert real.seed_limits.get(name) == ours.seed_limits.get(name)
        lists = [
            {key: capability.choice_lists[index] for key, index in capability.choices.get(name, {}).items()} for capability in (real, ours)
        ]
        assert lists[0] == lists[1]
