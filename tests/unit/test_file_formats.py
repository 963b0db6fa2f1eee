"""Files of collected audio, latents and masks: what is in them, and what is refused."""
from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distributed_comfy.collector.save import FileMetadata, ResultSaver
from distributed_comfy.errors import ValueUnsavable
from distributed_comfy.messages import ItemResult
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tests.collected_jobs import COLLECTOR, audio, capture, image, open_spool

PROMPT = {"3": {"class_type": "DistributedSeed", "inputs": {"seed": 7}}}
METADATA = FileMetadata(PROMPT, {"workflow": {"nodes": []}}, seeds=("7", "8"))


def saved(folder: Path, *items: dict[str, Any]) -> list[Path]:
    """Save these slots of these items; the paths in order."""
    store, slots = MemoryBlobStore(), list(items[0])
    with open_spool(folder / "spool") as spool:
        with ResultSaver(spool, [(COLLECTOR, slot) for slot in slots], folder / "out", metadata=METADATA) as saver:
            for index, values in enumerate(items):
                captures = tuple(capture(store, f"c{index}", COLLECTOR, slot, value) for slot, value in values.items())
                spool.add(index, f"c{index}", ItemResult(captures=captures), store)
                saver.add(index)
        return [value.path for value in saver.saved]


def read_wav(path: Path) -> tuple[Any, int]:
    """[C, T] float32 and rate of a WAV of floats, chunk by chunk."""
    raw = path.read_bytes()
    assert (raw[:4], raw[8:12]) == (b"RIFF", b"WAVE") and struct.unpack("<I", raw[4:8])[0] == len(raw) - 8
    chunks, at = {}, 12
    while at < len(raw):
        size = struct.unpack("<I", raw[at + 4 : at + 8])[0]
        chunks[raw[at : at + 4]] = raw[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    kind, channels, rate, per_second, per_frame, bits, _ = struct.unpack("<HHIIHHH", chunks[b"fmt "])
    assert (kind, bits, per_frame, per_second) == (3, 32, 4 * channels, 4 * channels * rate)
    wave = np.frombuffer(chunks[b"data"], "<f4").reshape(-1, channels).T
    assert struct.unpack("<I", chunks[b"fact"])[0] == wave.shape[1]
    return wave, rate


def read_latent(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    assert size % 8 == 0
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    about = header.pop("__metadata__")
    kinds = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[start:end], kinds[entry["dtype"]]).reshape(entry["shape"])
    return tensors, about


def test_each_item_is_a_track_of_its_own_with_the_very_samples(tmp_path: Path) -> None:
    paths = saved(tmp_path, {"audio": audio(1)}, {"audio": audio(2, 7)})
    assert [path.name for path in paths] == ["ComfyUI_audio_00001_.wav", "ComfyUI_audio_00002_.wav"]
    for seed, samples, path in ((1, 10, paths[0]), (2, 7, paths[1])):
        wave, rate = read_wav(path)
        assert rate == 44_100 and wave.tobytes() == audio(seed, samples)["waveform"][0].tobytes()


def test_a_batch_of_tracks_is_one_file_each(tmp_path: Path) -> None:
    waves = np.random.default_rng(1).uniform(-3, 3, (2, 1, 5)).astype(np.float64)
    paths = saved(tmp_path, {"audio": {"waveform": waves, "sample_rate": 8000}})
    assert [read_wav(path)[0].tolist() for path in paths] == waves.astype(np.float32).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_latents_are_kept_exactly_with_the_users_prompt(tmp_path: Path, dtype: str) -> None:
    samples = image(3, (2, 4, 8, 6)).astype(dtype)
    (path,) = saved(tmp_path, {"latents": {"samples": samples, "batch_index": [0, 1]}})
    assert path.name == "ComfyUI_latent_00001_.latent"
    tensors, about = read_latent(path)
    assert tensors["latent_tensor"].tobytes() == samples.tobytes() and tensors["latent_tensor"].shape == (2, 4, 8, 6)
    assert tensors["latent_format_version_0"].size == 0
    assert json.loads(about["prompt"]) == PROMPT and json.loads(about["seed"]) == 7
    assert json.loads(about["left_out"]) == ["batch_index"]


@pytest.mark.parametrize("shape", [(2, 4, 6), (4, 6)])
def test_masks_are_grey_pictures(tmp_path: Path, shape: tuple[int, ...]) -> None:
    mask = image(4, shape)
    paths = saved(tmp_path, {"masks": mask})
    assert [path.name for path in paths] == [f"ComfyUI_mask_{number:05}_.png" for number in range(1, len(paths) + 1)]
    expected = np.clip(255 * mask.reshape(-1, 4, 6), 0, 255).astype(np.uint8)
    for path, pixels in zip(paths, expected, strict=True):
        with Image.open(path) as opened:
            assert opened.mode == "L" and np.array_equal(np.asarray(opened), pixels)
            assert json.loads(opened.info["prompt"]) == PROMPT


def test_several_slots_are_saved_item_by_item(tmp_path: Path) -> None:
    items = [{"images": image(index), "audio": audio(index)} for index in range(2)]
    assert [path.name for path in saved(tmp_path, *items)] == [
        "ComfyUI_00001_.png", "ComfyUI_audio_00001_.wav", "ComfyUI_00002_.png", "ComfyUI_audio_00002_.wav",
    ]  # fmt: skip


@pytest.mark.parametrize(("slot", "value"), [
    ("audio", {"samples": np.zeros((1, 2), np.float32)}), ("audio", {"waveform": np.zeros((1, 0, 5), np.float32), "sample_rate": 8000}),
    ("latents", {"waveform": np.zeros((1, 2, 3), np.float32)}), ("latents", 5),
    ("masks", np.zeros((1, 2, 3, 3), np.float32)), ("masks", "x"),
])  # fmt: skip
def test_what_a_slot_is_not_for_is_refused_by_name(tmp_path: Path, slot: str, value: Any) -> None:
    with pytest.raises(ValueUnsavable, match=f"item 0 collected {slot} that cannot be saved"):
        saved(tmp_path, {slot: value})
