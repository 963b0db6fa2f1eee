"""What came of a demo, and what it leaves beside its pictures: a contact sheet and a summary, as text and as JSON."""
from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_comfy.collector.contact_sheet import SheetEntry, SheetHeader, save_contact_sheet
from distributed_comfy.collector.naming import writing
from distributed_comfy.orchestrator.delivery import Delivery
from distributed_comfy.orchestrator.demo_upscale import BEFORE_AFTER, SCALE, DemoUpscale

SHEET = "contact-sheet.png"
SUMMARY_JSON = "summary.json"
SUMMARY_TEXT = "summary.txt"
ALONE_FOLDER = ".one-worker"
"""Takes the pictures of the second job, until they were compared."""
COLUMNS = ("ITEM", "SEED", "WORKER", "SECONDS", "FILE")

ENGINE_NOTE = "These pictures were made by the built-in engine, a small seeded generator: no ComfyUI and no model took part."
_COMFYUI_STEPS = (
    "With ComfyUI instead: in its editor, feed the sampler's seed from a DistributedSeed, put a DistributedCollector behind the images,",
    "and save the graph with Workflow > Export (API). Then, on this machine alone:",
    "    {command} run graph.json --items 8 --workers 1 --engine comfyui --comfyui ~/comfy/ComfyUI",
    "With many GPUs, start a worker on each GPU of this machine, and leave it running:",
    "    {command} up",
    "For each further machine, on this one; it prints the one command to run there:",
    "    {command} invite --name pc2",
    "Then, on this machine:",
    "    {command} run graph.json --items 32 --out pictures",
)


def comfyui_steps(command: str) -> list[str]:
    """How it goes on with ComfyUI.

    Args:
        command: as the user can type it.
    """
    return [line.format(command=command) for line in _COMFYUI_STEPS]


@dataclass(frozen=True)
class DemoResult:
    """What came of it; every time is measured, none is computed from another."""

    delivery: Delivery
    """The job on all workers."""
    workers: tuple[str, ...]
    upscale: DemoUpscale
    """The first picture, larger, by all workers."""
    alone: Delivery | None = None
    """The same job again on one worker while the others were drained; None where there was only one from the start."""
    same_pixels: bool | None = None
    """Whether both jobs gave the same pixels, picture by picture."""


def summary_rows(result: DemoResult) -> list[tuple[str, ...]]:
    """One row per item, see `COLUMNS`."""
    delivery = result.delivery
    names = {image.index: image.path.name for image in delivery.images}
    return [
        (str(index), delivery.seeds[index], item.worker, f"{item.seconds:.2f}", names.get(index, ""))
        for index, item in sorted(delivery.results.items())
    ]


def summary_lines(result: DemoResult) -> list[str]:
    """What was measured, in sentences."""
    delivery, workers = result.delivery, result.workers
    lines = [f"{_counted(len(delivery.images), 'picture')} on {_counted(len(workers), 'worker')}: {delivery.seconds:.2f} s wall time"]
    if result.alone is not None:
        factor = result.alone.seconds / delivery.seconds
        alone = next(iter(result.alone.results.values())).worker
        lines.append(f"the same job on one worker, measured in this run ({alone}): {result.alone.seconds:.2f} s, {factor:.2f} times that")
        lines.append(f"the same pixels from both: {'yes' if result.same_pixels else 'NO'}")
    for name in workers:
        seconds = [item.seconds for item in delivery.results.values() if item.worker == name]
        lines.append(f"{name} did {_counted(len(seconds), 'item')} in {sum(seconds):.2f} s")
    return [*lines, _upscale_line(result)]


def _upscale_line(result: DemoResult) -> str:
    upscale = result.upscale
    made = ", ".join(f"{name} {count}" for name, count in upscale.tiles.items())
    tiles = _counted(sum(upscale.tiles.values()), "tile")
    what = f"the middle of {upscale.source.name} at {SCALE} times its size"
    return f"{what}, redrawn in {tiles} ({made}): {upscale.delivery.seconds:.2f} s wall time"


def write_summary(result: DemoResult, out: Path, command: str) -> Path:
    """Draw the contact sheet, write both summaries; the path of the sheet.

    Args:
        result: of the demo.
        out: its folder.
        command: see `comfyui_steps`.
    Raises:
        OutputUnwritable: the folder is full or may not be written.
    """
    delivery = result.delivery
    entries = [
        SheetEntry(image.path, image.index, delivery.seeds[image.index], *_maker(result, image.index)) for image in delivery.images
    ]
    facts: tuple[str, ...] = (_counted(len(entries), "picture"), f"{delivery.seconds:.1f} s on {_counted(len(result.workers), 'worker')}")
    if result.alone is not None:
        facts = (*facts, f"{result.alone.seconds:.1f} s on one")
    sheet = save_contact_sheet(entries, SheetHeader("Distributed Comfy demo", facts, ENGINE_NOTE), out / SHEET)
    text = "\n".join([*summary_lines(result), "", *_text_table(summary_rows(result)), "", ENGINE_NOTE, *comfyui_steps(command), ""])
    for name, content in ((SUMMARY_TEXT, text), (SUMMARY_JSON, json.dumps(summary_json(result), indent=2) + "\n")):
        with writing(out / name):
            (out / name).write_text(content, encoding="utf-8")
    return sheet


def summary_json(result: DemoResult) -> dict[str, Any]:
    """Everything measured, as JSON values; seconds are wall time unless named otherwise."""
    delivery, alone = result.delivery, result.alone
    names = {image.index: image.path.name for image in delivery.images}
    return {
        "engine": "builtin",
        "engine_note": ENGINE_NOTE,
        "files": [image.path.name for image in delivery.images],
        "contact_sheet": SHEET,
        "seconds": round(delivery.seconds, 3),
        "upscale": {
            "of": result.upscale.source.name,
            "file": result.upscale.path.name,
            "before_after": BEFORE_AFTER,
            "seconds": round(result.upscale.delivery.seconds, 3),
            "tiles": result.upscale.tiles,
        },
        "on_one_worker": _alone_json(alone, result.same_pixels) if alone else None,
        "workers": {name: [i for i, item in sorted(delivery.results.items()) if item.worker == name] for name in result.workers},
        "items": [
            {
                "index": index,
                "seed": delivery.seeds[index],
                "worker": item.worker,
                "engine_seconds": round(item.seconds, 4),
                "device_class": item.device_class,
                "file": names.get(index),
            }
            for index, item in sorted(delivery.results.items())
        ],
    }


def _alone_json(alone: Delivery, same_pixels: bool | None) -> dict[str, Any]:
    items = alone.results.values()
    return {
        "worker": next(iter(items)).worker,
        "seconds": round(alone.seconds, 3),
        "engine_seconds": round(sum(item.seconds for item in items), 3),
        "same_pixels": same_pixels,
    }


def remember_files(out: Path, *deliveries: Delivery) -> None:
    """Leave a summary with the names of the files alone, for `forget_last_demo` after a demo that was interrupted."""
    with writing(out / SUMMARY_JSON):
        names = [path.name for delivery in deliveries for path in delivery.paths]
        (out / SUMMARY_JSON).write_text(json.dumps({"contact_sheet": SHEET, "files": names}) + "\n", encoding="utf-8")


def forget_last_demo(out: Path) -> None:
    """Remove what the last demo left in this folder, so that it holds the pictures of one demo; nothing else is touched."""
    shutil.rmtree(out / ALONE_FOLDER, ignore_errors=True)  # left by one that was killed
    try:
        summary = json.loads((out / SUMMARY_JSON).read_text(encoding="utf-8"))
        upscaled = [summary["upscale"]["file"]] if "upscale" in summary else []
        names = [*summary["files"], *upscaled, BEFORE_AFTER, SHEET, SUMMARY_TEXT, SUMMARY_JSON] if summary["contact_sheet"] == SHEET else []
    except (OSError, ValueError, KeyError, TypeError):  # no summary of ours
        return
    for name in names:
        if Path(name).name == name:
            (out / name).unlink(missing_ok=True)


def _maker(result: DemoResult, index: int) -> tuple[str, float]:
    item = result.delivery.results[index]
    return item.worker, item.seconds


def _text_table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in (COLUMNS, *rows)) for column in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (COLUMNS, *rows)]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
