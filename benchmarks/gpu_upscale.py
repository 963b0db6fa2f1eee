"""Tiled upscales on one NVIDIA GPU: ``python benchmarks/gpu_upscale.py``; what they take over the engine's own time for the tiles.

Everything is real but the model, which is random and of SDXL's size (``--size small``: a tiny one, for a CPU); see benchmarks/gpu.py.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):  # started as a file: its folder holds modules with common names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import psutil

from benchmarks.gpu_ours import Ours, open_ours
from benchmarks.gpu_place import SIZES, Place, node
from benchmarks.rig import BenchmarkFailed
from distributed_comfy.engine.locate import find_comfyui, find_interpreter
from distributed_comfy.messages import Prompt
from distributed_comfy.orchestrator.servers import redis_servers
from distributed_comfy.settings import read_settings

RUNS = ((1, "linear", 4), (2, "linear", 4), (1, "chess", 4), (2, "chess", 4), (2, "independent", 4), (2, "chess", 8))
"""Slots, order of tiles, and the side of the canvas in tiles."""


@dataclass(frozen=True)
class Upscaled:
    """One upscale."""

    slots: int
    mode: str
    side: int
    """Of the canvas, in pixels."""
    tiles: int
    seconds: float
    """From submission to the end of the last stage."""
    engine_seconds: float
    """What the engine says its tiles took, in all; with one GPU nothing can be faster."""
    tile_median_s: float
    rest_s: float
    """Of `seconds`, what the items before and after the tiles took."""
    master_gib: float
    """Most memory of this process so far, mapped files included."""

    @property
    def over_floor(self) -> float:
        """The whole over the engine's own time for all items."""
        return self.seconds / (self.engine_seconds + self.rest_s)


def main() -> int:
    """Run, print the table, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="sdxl")
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write every number here")
    asked = parser.parse_args()
    settings = read_settings()
    comfyui = find_comfyui(settings)
    if comfyui is None:
        raise BenchmarkFailed("no ComfyUI in ~/comfy/ComfyUI; set COMFYUI_PATH")
    with tempfile.TemporaryDirectory(prefix="dc-gpu-", ignore_cleanup_errors=True) as folder:
        python = find_interpreter(settings, comfyui)
        place = Place(SIZES[asked.size], asked.device, comfyui, python, Path(folder).resolve(), os.cpu_count() or 1)
        done = _run_all(place, asked.steps)
    print(json.dumps(place.hardware()))
    print(_table(done))
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(one) for one in done], indent=1))
    return 0


def _run_all(place: Place, steps: int) -> list[Upscaled]:
    place.write_models()
    done = []
    with ExitStack() as ending:
        servers = ending.enter_context(redis_servers(read_settings(), private=True))
        workers = {slots: ending.enter_context(open_ours(place, servers, f"upscale-slots{slots}", slots=slots)) for slots in (1, 2)}
        for slots, mode, tiles in RUNS:
            ours = workers[slots]
            with ours.at_work():
                if not any(one.slots == slots for one in done):
                    ours.run(upscale_prompt(place, "linear", 1, 1))  # reads the models
                done.append(_one(ours, slots, mode, tiles, steps))
                print(done[-1], flush=True)
    return done


def _one(ours: Ours, slots: int, mode: str, tiles: int, steps: int) -> Upscaled:
    began = time.monotonic()
    delivery = ours.run(upscale_prompt(ours.place, mode, tiles, steps))
    seconds = time.monotonic() - began
    if delivery.error is not None:
        raise delivery.error
    engine = [delivery.results[index].seconds for index in sorted(delivery.results)]
    rest, drawn = engine[:2], engine[2:]
    peak = psutil.Process().memory_info().rss / 2**30
    return Upscaled(slots, mode, tiles * ours.place.size.side, len(drawn), seconds, sum(drawn), statistics.median(drawn), sum(rest), peak)


def upscale_prompt(place: Place, mode: str, tiles: int, steps: int) -> Prompt:
    """A plain colour at the size of the canvas; what a tile costs does not depend on what it shows."""
    tile, side = place.size.side, place.size.side * tiles
    prompt = place.plain_prompt("swallow", steps=1)
    kept = {node_id: prompt[node_id] for node_id in ("1", "2", "3", "4")}
    return {
        **kept,
        "image": node("EmptyImage", width=side, height=side, batch_size=1, color=8421504),
        "up": node(
            "UltimateSDUpscaleDistributed", upscaled_image=["image", 0], model=["1", 0], positive=["3", 0], negative=["4", 0],
            vae=["2", 0], seed=place.next_seed(), steps=steps, cfg=place.size.cfg, sampler_name="euler", scheduler=place.size.scheduler,
            denoise=0.35, tile_width=tile, tile_height=tile, padding=32, mask_blur=8, force_uniform_tiles=True, tiled_decode=False,
            mode=mode,
        ),
        "end": node("GpuSwallow", images=["up", 0]),
    }  # fmt: skip


def _table(done: list[Upscaled]) -> str:
    titles = ("canvas", "order", "slots", "tiles", "seconds", "over the engine's time", "tile, median", "master's memory")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    lines += [
        f"| {one.side}^2 | {one.mode} | {one.slots} | {one.tiles} | {one.seconds:.1f} | {one.over_floor:.3f} x | {one.tile_median_s:.2f} s "
        f"| {one.master_gib:.2f} GiB |"
        for one in done
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
