"""What a worker's engine keeps warm, and what ComfyUI's arguments do to it: ``python benchmarks/gpu_engine.py``.

Cold start to the first picture; a model under ComfyUI's own TorchCompileModel, which is to be compiled once per worker, whatever jobs
follow; ``--lowvram`` and ``--novram``, of which the second is to take less of the device's memory.  ``--size small --device
cpu`` shows the same without a GPU, with another argument.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: its folder holds modules with common names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.gpu_master import digests, plain_digest_prompt
from benchmarks.gpu_ours import Ours, open_ours
from benchmarks.gpu_place import SAMPLER, SIZES, Place, node
from benchmarks.gpu_scale import delivered
from benchmarks.rig import BenchmarkFailed
from distributed_comfy.engine.locate import find_comfyui, find_interpreter
from distributed_comfy.messages import Prompt
from distributed_comfy.orchestrator.servers import Servers, redis_servers
from distributed_comfy.settings import read_settings

COMPILED_JOBS, COMPILED_ITEMS = 3, 2
GIB = 2**30


@dataclass(frozen=True)
class Started:
    """A worker with some of ComfyUI's arguments, from its start to its third picture."""

    arguments: str
    ready_s: float
    pictures_s: tuple[float, ...]
    """Each a job of its own, from submission to its end."""
    peak_bytes: int
    """Most device memory that torch had allocated while the last one was made."""
    held_bytes: int
    """What it had allocated just after."""
    sums: tuple[str, ...]
    """Of the last picture's bits; the same seed for every worker."""


@dataclass(frozen=True)
class Compiled:
    """Jobs over a compiled model on one worker, one after the other."""

    size: str
    pictures_s: tuple[tuple[float, ...], ...]
    """Engine time of each picture of each job."""
    graphs: tuple[int, ...]
    """Graphs that torch had compiled in that process after each job."""
    held: tuple[int, ...]
    """Models on the device after each job."""


def start(place: Place, servers: Servers, arguments: str, seed: int) -> Started:
    """Start a worker and make three pictures."""
    given = read_settings().comfyui_args
    began = time.monotonic()
    name = f"engine{arguments.replace('--', '-')}"
    with open_ours(place, servers, name, slots=1, comfyui_args=f"{given} {arguments}".strip()) as ours:
        ready_s = time.monotonic() - began
        seconds = []
        with ours.at_work():
            for number in range(3):
                label = f"{name}-{number}"
                began = time.monotonic()
                delivered(ours.run(plain_digest_prompt(place, seed + number, label)))
                seconds.append(time.monotonic() - began)
        [*_, last] = [event.facts for event in ours.trace.events() if event.name == "prompt:end"]
        return Started(arguments, ready_s, tuple(seconds), last["peak"], last["allocated"], tuple(digests(place.base, label)))


def compiled(ours: Ours) -> Compiled:
    """Jobs of a few pictures each over a compiled model."""
    seconds, graphs, held = [], [], []
    with ours.at_work():
        for _ in range(COMPILED_JOBS):
            began = time.time()
            delivery = delivered(ours.run(compiled_prompt(ours.place), COMPILED_ITEMS))
            seconds.append(tuple(result.seconds for _, result in sorted(delivery.results.items())))
            ends = [event.facts for event in ours.trace.events(began) if event.name == "prompt:end"]
            graphs.append(int(ends[-1]["compiled"]))
            held.append(int(ends[-1]["models"]))
    return Compiled(ours.place.size.name, tuple(seconds), tuple(graphs), tuple(held))


def compiled_prompt(place: Place) -> Prompt:
    """A job whose model is compiled before it samples."""
    prompt = place.job_prompt("save", COMPILED_ITEMS)
    prompt["compile"] = node("TorchCompileModel", model=["1", 0], backend="inductor")
    prompt[SAMPLER] = {**prompt[SAMPLER], "inputs": {**prompt[SAMPLER]["inputs"], "model": ["compile", 0]}}
    return prompt


def main() -> int:
    """Run, print, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="sdxl")
    parser.add_argument("--compile-size", choices=sorted(SIZES), help="of the compiled model [that of --size]")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--folder", type=Path, help="for models and logs; without it a temporary one")
    parser.add_argument("--json", type=Path, help="write every number here")
    asked = parser.parse_args()
    seen: dict[str, Any] = {}
    with ExitStack() as ending:
        folder = asked.folder or Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="dc-gpu-", ignore_cleanup_errors=True)))
        servers = ending.enter_context(redis_servers(read_settings(), private=True))
        try:
            place = _place(asked.size, asked.device, folder)
            arguments = _show_arguments(place, servers, seen)
            small = place if asked.compile_size in (None, asked.size) else _place(asked.compile_size, asked.device, folder)
            with open_ours(small, servers, "compiled", slots=1) as ours:
                found = compiled(ours)
            seen["compiled"] = asdict(found)
            print(json.dumps(seen["compiled"]), flush=True)
        finally:
            if asked.json is not None:
                asked.json.write_text(json.dumps(seen, indent=1))
    alike = len({each.sums for each in arguments if each.arguments != "--novram"}) == 1
    once = found.graphs[0] > 0 and len(set(found.graphs)) == 1
    print(f"same bits wherever the weights stay on the device: {alike}; compiled once: {once}")
    return 0 if alike and once else 1


def _show_arguments(place: Place, servers: Servers, seen: dict[str, Any]) -> Sequence[Started]:
    seed, found = place.next_seed(3), []
    for arguments in ("", "--lowvram", "--novram") if place.on_gpu else ("", "--disable-smart-memory"):
        found.append(start(place, servers, arguments, seed))
        seen.setdefault("started", []).append(asdict(found[-1]))
        one = found[-1]
        told = ", ".join(f"{seconds:.2f}" for seconds in one.pictures_s)
        memory = f"{one.held_bytes / GIB:.2f} GiB held, {one.peak_bytes / GIB:.2f} at most"
        print(f"{arguments or 'no arguments'}: ready in {one.ready_s:.1f} s, pictures {told} s, {memory}", flush=True)
    return found


def _place(size: str, device: str, folder: Path) -> Place:
    settings = read_settings()
    comfyui = find_comfyui(settings)
    if comfyui is None:
        raise BenchmarkFailed("no ComfyUI in ~/comfy/ComfyUI; set COMFYUI_PATH")
    place = Place(SIZES[size], device, comfyui, find_interpreter(settings, comfyui), (folder / size).resolve(), os.cpu_count() or 1)
    place.folder.mkdir(parents=True, exist_ok=True)
    place.write_models()
    return place


if __name__ == "__main__":
    sys.exit(main())
