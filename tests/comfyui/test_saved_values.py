"""Audio and latents that the master saves, read again by what ComfyUI reads them with."""
from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cluster_rig import Rig
from tests.comfyui.comfy_process import Comfy
from tests.prompts import node, out

pytestmark = pytest.mark.comfyui

DECODE = """
import av, json, sys
with av.open(sys.argv[1]) as file:
    frames = [frame.to_ndarray() for frame in file.decode(audio=0)]
    rate, channels = file.streams.audio[0].rate, file.streams.audio[0].channels
print(json.dumps([rate, channels, [frame.tolist() for frame in frames]]))
"""
"""PyAV, as LoadAudio uses it; that node itself needs torchaudio to be installed."""


def decoded(comfy: Comfy, path: Path) -> tuple[int, list[list[float]]]:
    """Rate and channels of a track."""
    found = subprocess.run([comfy.python, "-c", DECODE, str(path)], capture_output=True, text=True, timeout=60, check=True)
    rate, channels, frames = json.loads(found.stdout)
    packed = [value for frame in frames for value in frame[0]]
    return rate, [packed[channel::channels] for channel in range(channels)]


def test_what_the_master_saved_is_read_bit_for_bit(comfyui_rig: Rig, comfy: Comfy) -> None:
    prompt = {
        "seed": node("DistributedSeed", seed=5),
        "split": node("RuleSplit", seed=out("seed")),
        "collect": node("DistributedCollector", load_balance=False, audio=out("split", 3), latents=out("split", 2)),
        "show": node("RuleRecord", label="made", audio=out("split", 3), latent=out("split", 2)),
    }
    report = comfyui_rig.run(prompt, items=2)
    made = report.record("made")
    names = {value.path.name: value.path for value in report.done.collected}
    assert sorted(names) == [f"ComfyUI_{slot}_0000{n}_.{end}" for slot, end in (("audio", "wav"), ("latent", "latent")) for n in (1, 2)]
    read = {
        "latent": node("LoadLatent", latent=str(names["ComfyUI_latent_00001_.latent"])),
        "record": node("RuleRecord", label="read", latent=out("latent")),
    }
    assert comfyui_rig.run(read).record("read")["latent"]["samples"] == made["latent"]["samples"]
    assert decoded(comfy, names["ComfyUI_audio_00001_.wav"]) == (44100, made["audio"]["waveform"][0])
