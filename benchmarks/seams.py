"""How well seams hide, per mode and seam fix: ``python -m benchmarks.seams FOLDER [--comfyui PATH --python PATH --base PATH]``.

One picture is enlarged and redrawn in tiles by each combination, as jobs of a private cluster: with the built-in refiner, and with the
tiny model of ``examples/tiny_model.py`` in a real ComfyUI where one is given.  Prints the tables of docs/tiles.md and leaves the pictures.
"""
from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distributed_comfy.messages import Prompt
from distributed_comfy.orchestrator.local_workers import WorkerOptions
from distributed_comfy.orchestrator.run import RunOptions, SilentReporter, open_session, run_on
from distributed_comfy.orchestrator.servers import redis_servers
from distributed_comfy.orchestrator.submit import SubmitOptions, read_prompt
from distributed_comfy.settings import Settings, read_settings
from tasks.cluster import Cluster
from tiler.groups import levels
from tiler.options import Mode, TileOptions
from tiler.plan import plan_tiles

MODES: tuple[Mode, ...] = ("linear", "chess", "independent")
FIXES = ("none", "band_pass", "half_tile", "half_tile_intersections")
SIDE, TILE, PADDING, FEATHER = 960, 256, 32, 8
BESIDE = 8
"""Pixels that are averaged on each side of a seam's ramp."""
APART = 24
"""So far from a seam nothing counts as beside it."""

Picture = NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seams", description="Measures the seams of tiled upscales.")
    parser.add_argument("folder", type=Path, help="for pictures")
    parser.add_argument("--comfyui", type=Path, metavar="PATH", help="a ComfyUI tree; without it only the built-in refiner is measured")
    parser.add_argument("--python", default="", metavar="PATH", help="its interpreter")
    parser.add_argument("--base", type=Path, metavar="PATH", help="folder of examples/tiny_model.py")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    rounds = {"builtin": read_settings()}
    if options.comfyui:
        changed = {"comfyui_path": options.comfyui, "comfyui_python": options.python, "comfyui_base_directory": options.base}
        rounds["comfyui"] = read_settings(**changed)
    for engine, settings in rounds.items():
        print("\n".join(_table(engine, _pictures(engine, settings, options.folder))), end="\n\n")
    print("\n".join(_parallel_table()))
    return 0


# -- pictures
def _pictures(engine: str, settings: Settings, folder: Path) -> dict[tuple[str, str], Picture]:
    """Every combination's picture, and under ``("", "")`` the one before."""
    with redis_servers(settings, private=True) as servers:
        asked = SubmitOptions(user="benchmark")
        given = RunOptions(folder, asked, workers=2, worker=WorkerOptions(engine, settings.comfyui_path, ("cpu",), name="seams"))
        with open_session(settings, servers, given, SilentReporter()) as cluster:
            if engine == "builtin":
                _run(cluster, _first_picture(), folder, "before")
            found = {("", ""): _read(folder / "before.png")}
            for mode, fix in ((mode, fix) for mode in MODES for fix in FIXES):
                name = f"{engine}-{mode}-{fix}"
                _run(cluster, _upscale(engine, folder / "before.png", mode=mode, seam_fix=fix), folder, name)
                found[mode, fix] = _read(folder / f"{name}.png")
            bare = f"{engine}-bare"
            _run(cluster, _upscale(engine, folder / "before.png", mode="independent", padding=0, mask_blur=0), folder, bare)
            found["independent", "none; padding and blur 0"] = _read(folder / f"{bare}.png")
    return found


def _run(cluster: Cluster, prompt: Prompt, folder: Path, name: str) -> None:
    given = SubmitOptions(user="benchmark")
    delivery = run_on(cluster, read_prompt(prompt, given), RunOptions(folder / name, given, fresh=True), SilentReporter())
    if delivery.error is not None:
        raise delivery.error
    delivery.paths[0].rename(folder / f"{name}.png")
    shutil.rmtree(folder / name)


def _first_picture() -> Prompt:
    made = {"seed": 7, "steps": 12, "width": SIDE // 4, "height": SIDE // 4, "batch_size": 1, "style": "auto"}
    scaled = {"image": ["1", 0], "upscale_method": "bilinear", "width": SIDE, "height": SIDE, "crop": "disabled"}
    return {
        "1": {"class_type": "SeededGenerator", "inputs": made},
        "2": {"class_type": "ImageScale", "inputs": scaled},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "before"}},
    }


def _upscale(engine: str, image: Path, **chosen: Any) -> Prompt:
    model = {"model": ["3", 0], "positive": ["3", 1], "negative": ["3", 1], "vae": ["3", 2]}
    loaders: Prompt = {"3": {"class_type": "SeededModel", "inputs": {"edges": 0.8, "strokes": 0.6}}}
    if engine == "comfyui":
        model = {"model": ["3", 0], "positive": ["6", 0], "negative": ["7", 0], "vae": ["8", 0]}
        loaders = {
            "3": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny_mmdit.safetensors", "weight_dtype": "default"}},
            "6": {"class_type": "TinyConditioning", "inputs": {"text": "a fox in the snow"}},
            "7": {"class_type": "TinyConditioning", "inputs": {"text": "blurry"}},
            "8": {"class_type": "VAELoader", "inputs": {"vae_name": "tiny_taesd16.safetensors"}},
        }
    sampler = {"seed": 3, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 0.4}
    tiles = {"tile_width": TILE, "tile_height": TILE, "padding": PADDING, "mask_blur": FEATHER}
    fixed = {"force_uniform_tiles": True, "tiled_decode": False}
    inputs: dict[str, Any] = {"upscaled_image": ["1", 0], **model, **sampler, **tiles, **fixed, **chosen}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": str(image.resolve())}},
        **loaders,
        "4": {"class_type": "UltimateSDUpscaleDistributed", "inputs": inputs},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "after"}},
    }


def _read(path: Path) -> Picture:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float64) / 255


# -- seams
def seam_gradient(picture: Picture) -> float:
    """Mean difference of two neighbours, in the ramps of the seams over elsewhere."""
    return _ratio(picture, lambda plane: np.abs(np.diff(plane, axis=1)).mean(axis=(0, 2)), FEATHER // 2)


def seam_step(picture: Picture) -> float:
    """Mean difference of what lies before and behind a ramp (averages of 8 pixels, a ramp apart), at seams over elsewhere."""

    def steps(plane: Picture) -> Picture:
        sums = np.cumsum(np.concatenate([np.zeros_like(plane[:, :1]), plane], axis=1), axis=1)
        means = (sums[:, BESIDE:] - sums[:, :-BESIDE]) / BESIDE
        found = np.full(plane.shape[1] - 1, np.nan)
        first, reach = BESIDE + FEATHER // 2, BESIDE + FEATHER
        found[first - 1 : first - 1 + means.shape[1] - reach] = np.abs(means[:, reach:] - means[:, :-reach]).mean(axis=(0, 2))
        return found

    return _ratio(picture, steps, 1)


def _ratio(picture: Picture, measure: Any, reach: int) -> float:
    """Over both directions; ``measure`` gives a number for each pair of neighbouring columns, ``reach`` pairs on each side are a seam's."""
    at_seams, elsewhere = [], []
    for plane in (picture, picture.swapaxes(0, 1)):
        values = measure(plane)
        distance = np.abs((np.arange(len(values)) + TILE // 2) % TILE - (TILE // 2 - 1))
        inside = np.arange(len(values))
        inner = (inside >= APART) & (inside < len(values) - APART)
        at_seams += list(values[inner & (distance < reach)])
        elsewhere += list(values[inner & (distance > APART)])
    return float(np.mean(at_seams) / np.mean(elsewhere))


# -- tables
def _table(engine: str, pictures: Mapping[tuple[str, str], Picture]) -> Iterator[str]:
    before = pictures["", ""]
    yield f"| {engine}: mode | seam fix | gradient | step | gradient of the change | step of the change |"
    yield "|---|---|---|---|---|---|"
    for (mode, fix), picture in pictures.items():
        changed = f"{seam_gradient(picture - before):.2f} | {seam_step(picture - before):.2f}" if mode else " | "
        yield f"| {mode or 'before'} | {fix} | {seam_gradient(picture):.3f} | {seam_step(picture):.3f} | {changed} |"


def _parallel_table() -> Iterator[str]:
    counts = (2, 4, 8, 16)
    yield f"| canvas | mode | tiles | longest chain | {' | '.join(f'{count} workers' for count in counts)} |"
    yield "|" + "---|" * (4 + len(counts))
    for side in (2048, 4096, 8192):
        for mode in MODES:
            plan = plan_tiles((side, side), TileOptions(512, 512, mode=mode))
            speed = [len(plan.steps) / _rounds(plan, count) for count in counts]
            cells = [f"{side} x {side}", mode, str(len(plan.steps)), str(max(levels(plan)) + 1), *(f"{one:.2f} x" for one in speed)]
            yield f"| {' | '.join(cells)} |"


def _rounds(plan: Any, workers: int) -> int:
    """Rounds of tiles of equal length that so many workers need, each taking the first in plan order that may run."""
    waiting = {step.index: set(step.waits_for) for step in plan.steps}
    done: set[int] = set()
    rounds = 0
    while waiting:
        taken = [index for index, before in waiting.items() if before <= done][:workers]
        for index in taken:
            del waiting[index]
        done.update(taken)
        rounds += 1
    return rounds


if __name__ == "__main__":
    sys.exit(main())
