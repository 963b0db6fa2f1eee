"""Shows the whole path on NVIDIA GPUs, beside plain ComfyUI on the same prompts: ``python benchmarks/gpu.py --smoke`` on one of them, in
detail; ``--scale --devices cuda:0 cuda:1 ..`` on 1, 2, 4 .. of them.

Everything is real: a worker as ``distributed-comfy run --workers 1`` starts it, private Redis servers, ComfyUI's own server as the control.
The model is random and of SDXL's size (``--size small``: a tiny one, for a CPU).  ComfyUI is that of COMFYUI_PATH, else ~/comfy/ComfyUI.
"""
from __future__ import annotations

import argparse
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

if __package__ in (None, ""):  # started as a file: its folder holds modules with common names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.gpu_checks import cancel, free, picture, run_out_of_memory
from benchmarks.gpu_ours import open_ours
from benchmarks.gpu_place import SIZES, Place, plan_seats
from benchmarks.gpu_plain import open_plain
from benchmarks.gpu_report import Findings
from benchmarks.gpu_rounds import Contest, play
from benchmarks.gpu_scale import Scaled, Wanted, scale
from benchmarks.gpu_scale_report import as_json, as_markdown
from benchmarks.rig import BenchmarkFailed
from distributed_comfy.cpu_list import format_cpus
from distributed_comfy.engine.locate import find_comfyui, find_interpreter
from distributed_comfy.orchestrator.servers import redis_servers
from distributed_comfy.settings import read_settings


def main() -> int:
    """Run, print the tables, write the files."""
    asked = _arguments().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what is measured by then is written
    return _scale(asked) if asked.scale else _smoke_all(asked)


def _scale(asked: argparse.Namespace) -> int:
    """Any number of devices."""
    devices = asked.devices or [asked.device]
    counts = asked.counts or sorted({*(2**power for power in range(8) if 2**power <= len(devices)), len(devices)})
    wanted = Wanted(tuple(counts), asked.items, asked.rounds, tuple(asked.tile_sides), asked.tile_rounds, tuple(asked.modes),
                    asked.slots[0], not asked.no_master)  # fmt: skip
    facts: dict[str, str] = {"command": shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])}
    scaled = Scaled()
    asked.device = devices[0]
    try:
        with _place(asked) as place:
            began = time.monotonic()
            parameters = place.write_models()
            scaled.cold["models made and written"] = time.monotonic() - began
            seats = plan_seats(devices)
            facts |= {**place.hardware(), "processor": f"{os.cpu_count()} cores", "python": platform.python_version(),
                      "model": f"{place.size.name}, {parameters / 1e9:.3f} billion parameters",
                      "seats": "; ".join(f"{one.device} cores {format_cpus(one.cpus)} threads {one.threads}" for one in seats)}  # fmt: skip
            scale(place, seats, wanted, scaled)
    finally:
        for path, text in ((asked.json, as_json(facts, scaled)), (asked.md, as_markdown(facts, scaled))):
            if path is not None:
                path.write_text(text)
        print(as_markdown(facts, scaled))
    return 0 if all(scaled.alike.values()) else 1


def _smoke_all(asked: argparse.Namespace) -> int:
    """One device."""
    findings = Findings()
    try:
        with _place(asked) as place:
            _smoke(place, asked, findings)
    finally:
        for path, text in ((asked.json, findings.as_json()), (asked.md, findings.as_markdown())):
            if path is not None:
                path.write_text(text)
        print(findings.as_markdown())
    return 1 if any(line.met is False for line in findings.lines()) else 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--smoke", action="store_true", help="one GPU: every row of docs/performance.md about it")
    which.add_argument("--scale", action="store_true", help="any number of devices: pictures and upscales")
    parser.add_argument("--devices", nargs="+", help="with --scale; one may be named twice [that of --device]")
    parser.add_argument("--counts", type=int, nargs="+", help="with --scale: numbers of devices [1 2 4 .. all]")
    parser.add_argument("--tile-sides", type=int, nargs="*", default=[4], help="with --scale: sides of the canvases, in tiles [4]")
    parser.add_argument("--tile-rounds", type=int, default=1, help="with --scale: how often each upscale is measured [1]")
    parser.add_argument("--modes", nargs="+", default=["independent", "chess"], help="with --scale: orders of tiles")
    parser.add_argument("--no-master", action="store_true", help="with --scale: no ComfyUI as master")
    parser.add_argument("--size", choices=sorted(SIZES), default="sdxl")
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu")
    parser.add_argument("--items", type=int, default=8, help="pictures of each job [8]")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured [3]")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2], help="workers to measure, by DC_SLOTS [1 2]")
    parser.add_argument("--ways", nargs="+", help="only these, by name; without it all")
    parser.add_argument("--no-memory-test", action="store_true", help="leave out the job that runs out of memory")
    parser.add_argument("--cancels", type=int, default=5, help="jobs that are cancelled [5]")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of each ComfyUI process")
    parser.add_argument("--folder", type=Path, help="for models and logs; without it a temporary one")
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--md", type=Path, help="write the tables here")
    return parser


@contextmanager
def _place(asked: argparse.Namespace) -> Iterator[Place]:
    settings = read_settings()
    comfyui = find_comfyui(settings)
    if comfyui is None:
        raise BenchmarkFailed("no ComfyUI in ~/comfy/ComfyUI; set COMFYUI_PATH")
    with ExitStack() as ending:
        folder = asked.folder or Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="dc-gpu-", ignore_cleanup_errors=True)))
        folder.mkdir(parents=True, exist_ok=True)
        python = find_interpreter(settings, comfyui)
        yield Place(SIZES[asked.size], asked.device, comfyui, python, folder.resolve(), asked.threads)


def _smoke(place: Place, asked: argparse.Namespace, findings: Findings) -> None:
    began = time.monotonic()
    parameters = place.write_models()
    findings.cold["models made and written"] = time.monotonic() - began
    findings.facts.update(
        command=shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]), **place.hardware(), processor=f"{os.cpu_count()} cores",
        python=platform.python_version(), model=f"{place.size.name}, {parameters / 1e9:.3f} billion parameters",
        pictures=f"{place.size.side} x {place.size.side}, {place.size.steps} steps euler, cfg {place.size.cfg}, {asked.items} per run",
    )  # fmt: skip
    with _contest(place, asked, findings) as contest:
        findings.facts.update(_versions(contest))
        _warm_up(contest, findings)
        findings.ways = [way for way in contest.ways() if way.name in (asked.ways or [way.name])]
        findings.runs = play(findings.ways, asked.rounds)
        ours = contest.ours[asked.slots[0]]
        with ours.at_work():
            findings.cancelled = [cancel(ours) for _ in range(asked.cancels)]
            findings.freed = free(ours)
            findings.exhausted = None if asked.no_memory_test else run_out_of_memory(ours)


@contextmanager
def _contest(place: Place, asked: argparse.Namespace, findings: Findings) -> Iterator[Contest]:
    """All processes, started at the same time."""
    began = time.monotonic()
    with ExitStack() as ending:
        servers = ending.enter_context(redis_servers(read_settings(), private=True))
        contexts = [open_ours(place, servers, f"gpu-slots{slots}", slots=slots) for slots in asked.slots]
        with ThreadPoolExecutor() as threads:
            plain = threads.submit(ending.enter_context, open_plain(place))
            ours = [threads.submit(ending.enter_context, context) for context in contexts]
        found = {slots: future.result() for slots, future in zip(asked.slots, ours, strict=True)}
        contest = Contest(place, plain.result(), found, asked.items)
        findings.cold["plain ComfyUI and all workers ready"] = time.monotonic() - began
        yield contest


def _versions(contest: Contest) -> dict[str, str]:
    state = next(iter(contest.ours.values())).state()
    opened = {ours.name: ours.trace.events()[0].facts for ours in contest.ours.values()}
    opened["plain ComfyUI"] = contest.plain.trace.events()[0].facts
    alike = {(facts["allocator"], facts["torch"], facts["threads"]) for facts in opened.values()}
    return {
        "device class": state.facts.device_class,
        "ComfyUI processes": "; ".join(f"{allocator}, torch {torch}, {threads} threads" for allocator, torch, threads in sorted(alike)),
    }


def _warm_up(contest: Contest, findings: Findings) -> None:
    """The first picture of each process reads the models; the second is as fast as any."""
    for ours in contest.ours.values():
        with ours.at_work():
            findings.cold[f"first picture, {ours.name}"] = picture(ours)
            findings.cold[f"second picture, {ours.name}"] = picture(ours)
    for which in ("first", "second"):
        began, ended = contest.plain.run([contest.place.plain_prompt("swallow")])
        findings.cold[f"{which} picture, plain ComfyUI"] = ended - began


if __name__ == "__main__":
    sys.exit(main())
