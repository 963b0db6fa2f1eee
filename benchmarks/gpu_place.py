"""Where gpu.py runs and what it runs: sizes, folders, device, prompts."""
from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rig import BenchmarkFailed
from benchmarks.worker import ROOT
from distributed_comfy.agent.placement import Wish, plan_placement
from distributed_comfy.agent.topology import read_topology
from distributed_comfy.messages import Prompt
from distributed_comfy.state.records import HostDevice

SEED_NODE, SAMPLER, DECODED, COLLECTOR, LAST = "6", "7", "8", "9", "10"
"""Node ids of the prompts."""


@dataclass(frozen=True)
class Size:
    """A model and the pictures that are made with it."""

    name: str
    side: int
    """Of the pictures, in pixels."""
    steps: int
    unet: str
    vae: str
    latent_class: str
    tokens: int
    width: int
    pooled: int
    scheduler: str
    cfg: float
    too_many: int
    """Pictures in one batch that no GPU has the memory for; 0: another way is taken to run out of memory."""


SIZES = {
    "sdxl": Size("sdxl", 1024, 20, "gpu_unet", "gpu_vae", "EmptyLatentImage", 77, 2048, 1280, "normal", 7.0, 2048),
    "small": Size("small", 128, 8, "tiny_mmdit", "tiny_taesd16", "EmptySD3LatentImage", 77, 4096, 2048, "simple", 3.0, 0),
}


@dataclass(frozen=True)
class Seat:
    """Where one ComfyUI process computes."""

    name: str
    device: str
    cpus: tuple[int, ...] = ()
    """Logical CPUs it is bound to; empty: all."""
    threads: int = 0
    """CPU threads; 0: torch's own choice."""


def plan_seats(devices: Sequence[str]) -> list[Seat]:
    """A seat for each of these devices, cores and threads as the agent of `up` would deal them out; one may be named twice."""
    names = [f"{number}-{device.replace(':', '')}" for number, device in enumerate(devices)]
    on_gpu = sorted({device for device in devices if device.startswith("cuda")})
    topology = read_topology([HostDevice(device, bus_id=_bus_id(device)) for device in on_gpu])
    wishes = [Wish(name, (device,)) for name, device in zip(names, devices, strict=True)]
    placed = plan_placement(wishes, topology)
    return [Seat(name, device, placed[name].cores, placed[name].threads) for name, device in zip(names, devices, strict=True)]


@dataclass(frozen=True)
class Place:
    """One machine, device and model; the folder is removed by whoever made it."""

    size: Size
    device: str
    comfyui: Path
    python: str
    folder: Path
    threads: int
    """CPU threads of each ComfyUI process."""
    _seeds: Iterator[int] = field(default_factory=lambda: itertools.count(1000))

    @property
    def base(self) -> Path:
        """ComfyUI's base directory with models and the node pack."""
        return self.folder / "base"

    @property
    def on_gpu(self) -> bool:
        """Whether the device is an NVIDIA GPU."""
        return self.device.startswith("cuda")

    def next_seed(self, count: int = 1) -> int:
        """The first of ``count`` seeds that nobody used yet: a cached result would measure nothing."""
        first = next(self._seeds)
        for _ in range(count - 1):
            next(self._seeds)
        return first

    def new_folder(self, name: str) -> Path:
        """A folder of this name that is there and empty."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def write_models(self) -> int:
        """Make the base directory; how many parameters the model has."""
        command = [self.python, "-m", "benchmarks.gpu_models", str(self.base), self.size.name, self.device]
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if made.returncode:
            raise BenchmarkFailed(f"the models cannot be made: {made.stderr[-2000:]}")
        return int(made.stdout.split()[-1])

    def used_bytes(self, pid: int) -> int:
        """What is taken of the device's memory, by whomever; without a GPU what the process ``pid`` holds."""
        if self.on_gpu:
            return int(_nvidia_smi("memory.used", self.device)) * 2**20
        status = Path(f"/proc/{pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def hardware(self) -> dict[str, str]:
        """Name, memory and driver of the device."""
        if not self.on_gpu:
            return {"gpu": "none (CPU)"}
        return {"gpu": _nvidia_smi("name", self.device), "memory": _nvidia_smi("memory.total", self.device) + " MiB",
                "driver": _nvidia_smi("driver_version", self.device)}  # fmt: skip

    # -- prompts ---------------------------------------------------------------------------------------------------------
    def plain_prompt(self, end: str, *, batch: int = 1, steps: int = 0) -> Prompt:
        """One picture with a seed of its own, as anyone would write it; ``end`` is ``swallow`` or ``save``."""
        prompt = self.graph(self.next_seed(), batch, steps or self.size.steps)
        return {**prompt, LAST: _end(end, [DECODED, 0])}

    def job_prompt(self, end: str, items: int, **changes: Any) -> Prompt:
        """The same distributed.

        Args:
            end: ``swallow``: a last stage takes the batch; ``save``: the collector's pictures are saved by us.
            items: seeds that the job will use.
            changes: ``batch`` pictures at once; ``hog=True`` asks for more memory than there is.
        """
        prompt = self.graph([SEED_NODE, 0], changes.get("batch", 1), self.size.steps)
        prompt[SEED_NODE] = node("DistributedSeed", seed=self.next_seed(items))
        images = [DECODED, 0]
        if changes.get("hog"):
            prompt["hog"] = node("GpuHog", images=images)
            images = ["hog", 0]
        prompt[COLLECTOR] = node("DistributedCollector", images=images, load_balance=False)
        return prompt if end == "save" else {**prompt, LAST: _end(end, [COLLECTOR, 0])}

    def graph(self, seed: Any, batch: int, steps: int) -> Prompt:
        """Model to decoded pictures; ``seed`` is a number or a link."""
        size = self.size
        conditioning = {"tokens": size.tokens, "width": size.width, "pooled": size.pooled}
        return {
            "1": node("UNETLoader", unet_name=f"{size.unet}.safetensors", weight_dtype="default"),
            "2": node("VAELoader", vae_name=f"{size.vae}.safetensors"),
            "3": node("GpuConditioning", seed=1, **conditioning),
            "4": node("GpuConditioning", seed=2, **conditioning),
            "5": node(size.latent_class, width=size.side, height=size.side, batch_size=batch),
            SAMPLER: node(
                "KSampler", model=["1", 0], positive=["3", 0], negative=["4", 0], latent_image=["5", 0], seed=seed, steps=steps,
                cfg=size.cfg, sampler_name="euler", scheduler=size.scheduler, denoise=1.0,
            ),
            DECODED: node("VAEDecode", samples=[SAMPLER, 0], vae=["2", 0]),
        }  # fmt: skip


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node of a prompt."""
    return {"class_type": class_type, "inputs": inputs}


def _end(end: str, images: list[Any]) -> dict[str, Any]:
    return node("GpuSwallow", images=images) if end == "swallow" else node("SaveImage", images=images, filename_prefix="gpu")


def _bus_id(device: str) -> str:
    """As Linux writes it: the driver has four digits more in front."""
    return _nvidia_smi("pci.bus_id", device).lower()[4:]


def _nvidia_smi(field_name: str, device: str) -> str:
    number = device.partition(":")[2] or "0"
    command = ["nvidia-smi", f"--id={number}", f"--query-gpu={field_name}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
