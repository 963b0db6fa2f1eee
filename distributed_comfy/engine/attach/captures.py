"""Sinks of a prompt as stock nodes that save what a sink would take, and their files and texts as values again.

    IMAGE   PreviewImage (PNG of 8 bits, in ComfyUI's temp folder)         MASK    MaskToImage before it
    LATENT  SaveLatent (exact), PreviewAny for what else the dict holds    numbers, text    PreviewAny
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed_comfy.engine.base import CapturedValue
from distributed_comfy.errors import FileDamaged, PictureUnreadable, WorkerLacks
from distributed_comfy.messages import Prompt
from distributed_comfy.transport.latents import read_latent
from distributed_comfy.transport.pictures import read_picture

CLAIM_MARK = "distributed_comfy_claim"
"""Input that no stock node has: ComfyUI drops it before the call, but knows the result by it, so the node runs in each claim."""

TAKEN_BY = ("images", "image", "mask", "samples", "source")
"""Inputs of the stock nodes that take a sink's value."""

Fetch = Callable[[Mapping[str, Any]], Path]
"""Downloads the file of a ui entry."""

_NUMBERS: dict[str, Callable[[str], Any]] = {
    "INT": int,
    "FLOAT": float,
    "BOOLEAN": lambda text: {"True": True, "False": False}[text],
    "STRING": str,
    "COMBO": str,
}
_WITHOUT_MEANING = frozenset({"samples", "downscale_ratio_spacial"})
"""Entries of a latent that are carried, or that tell nothing which the samples do not."""


@dataclass(frozen=True)
class CapturePlan:
    """The stock nodes for one slot of a sink."""

    sink: str
    slot: str
    kind: str
    """Type of the values."""
    files: str = ""
    """Node that saves; empty for numbers and text."""
    shown: str = ""
    """Node that shows a text for each value of the list: how many images it has, what a latent holds, the number itself."""

    @property
    def tellers(self) -> tuple[str, ...]:
        """The nodes that must run."""
        return tuple(node for node in (self.files, self.shown) if node)


def plan_capture(place: tuple[str, str], kind: str, link: list[Any], claim_id: str, *, counted: bool) -> tuple[CapturePlan, Prompt]:
    """The plan, and its nodes.

    Args:
        place: sink and slot.
        kind: type of what is linked, one that is served.
        link: what feeds the slot.
        claim_id: of the run.
        counted: whether this ComfyUI can tell how many images each value of a list has.
    """
    sink, slot = place
    name = f"{sink}~{slot}"
    if kind in _NUMBERS:
        return CapturePlan(sink, slot, kind, shown=f"{name}~shown"), {f"{name}~shown": _node("PreviewAny", source=link, **_mark(claim_id))}
    if kind == "LATENT":
        prefix = f"{_folder(claim_id)}/{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}"
        save, show = _node("SaveLatent", samples=link, filename_prefix=prefix), _node("PreviewAny", source=link)
        return CapturePlan(sink, slot, kind, f"{name}~files", f"{name}~shown"), {f"{name}~files": save, f"{name}~shown": show}
    nodes = {}
    if kind == "MASK":
        nodes[f"{name}~image"] = _node("MaskToImage", mask=link)
        link = [f"{name}~image", 0]
    nodes[f"{name}~files"] = _node("PreviewImage", images=link, **_mark(claim_id))
    if counted:
        nodes[f"{name}~size"] = _node("GetImageSize", image=link)
        nodes[f"{name}~shown"] = _node("PreviewAny", source=[f"{name}~size", 2])
    return CapturePlan(sink, slot, kind, f"{name}~files", f"{name}~shown" if counted else ""), nodes


def claim_prefix(claim_id: str, prefix: str) -> str:
    """A filename prefix in the folder of a claim: its files are new each time and have the names that they have in an empty folder."""
    return f"{_folder(claim_id)}/{prefix}"


def without_claim(subfolder: str, claim_id: str) -> str:
    """A subfolder as it is for a node that knows of no claim."""
    subfolder = subfolder.replace("\\", "/")
    return subfolder.removeprefix(_folder(claim_id)).lstrip("/") if subfolder.startswith(_folder(claim_id)) else subfolder


def read_capture(plan: CapturePlan, outputs: Mapping[str, Any], fetch: Fetch, worker: str) -> list[CapturedValue]:
    """The values that a slot of a sink would have taken, as the graph delivered them.

    Args:
        outputs: of the history, node id -> ui dict.
        fetch: downloads a file.
        worker: its name, for messages.
    Returns:
        One for each value of the list; none where nothing reached the sink.
    Raises:
        WorkerLacks: a value holds what cannot be carried here.
        FileDamaged: a file is not what it should be.
    """
    texts = [str(text) for text in outputs.get(plan.shown, {}).get("text", ())]
    entries = list(file_entries(outputs.get(plan.files)))
    if plan.kind == "LATENT":
        _require_plain_latents(plan, texts, worker)
        values: Iterable[Any] = ({"samples": read_latent(fetch(entry))} for entry in entries)
    elif plan.kind in _NUMBERS:
        values = (_number(plan, text, worker) for text in texts)
    else:
        images = [read_image(fetch(entry)) for entry in entries]
        values = _masks(_batches(images, texts)) if plan.kind == "MASK" else _batches(images, texts)
    return [CapturedValue(plan.sink, plan.slot, position, value) for position, value in enumerate(values)]


def file_entries(ui: Any) -> Iterator[dict[str, Any]]:
    """What a ui dict says about files of the output and temp folders."""
    for listed in ui.values() if isinstance(ui, dict) else ():
        for entry in listed if isinstance(listed, list) else ():
            if isinstance(entry, dict) and isinstance(entry.get("filename"), str) and entry.get("type") in ("output", "temp"):
                yield entry


def read_image(path: Path) -> NDArray[np.float32]:
    """A PNG as ComfyUI's LoadImage reads it, with all its channels: [H, W, C] in [0, 1].

    Raises:
        FileDamaged: it cannot be read.
    """
    try:
        pixels = np.asarray(read_picture(path, formats=("PNG",), most_pixels=2**28))
    except PictureUnreadable as error:
        raise FileDamaged(name=path.name, found=str(error), expected="a picture") from error
    image: NDArray[np.float32] = np.atleast_3d(pixels).astype(np.float32) / np.float32(255)
    return image


def _batches(images: list[NDArray[np.float32]], counts: list[str]) -> Iterator[NDArray[np.float32]]:
    """Images of a list of batches, as those batches; without counts, images of one size that follow each other are one batch."""
    start = 0
    sizes = [int(count) for count in counts] if sum(map(int, counts)) == len(images) else _runs(images)
    for size in sizes:
        if size:
            yield np.stack(images[start : start + size])
        start += size


def _runs(images: list[NDArray[np.float32]]) -> list[int]:
    runs: list[int] = []
    for number, image in enumerate(images):
        if number and image.shape == images[number - 1].shape:
            runs[-1] += 1
        else:
            runs.append(1)
    return runs


def _masks(batches: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    return (np.ascontiguousarray(batch[..., 0]) for batch in batches)


def _require_plain_latents(plan: CapturePlan, texts: list[str], worker: str) -> None:
    """SaveLatent writes the samples alone; PreviewAny shows a dict of tensors as Python prints it."""
    others = sorted({name for text in texts for name in re.findall(r"'(\w+)': ", text)} - _WITHOUT_MEANING)
    if others:
        raise WorkerLacks(worker=worker, lacks=f"a way of handing out the {', '.join(others)} of the latent of node {plan.sink}")


def _number(plan: CapturePlan, text: str, worker: str) -> Any:
    try:
        return _NUMBERS[plan.kind](text)
    except (ValueError, KeyError) as error:
        raise WorkerLacks(worker=worker, lacks=f"a way of handing out {text[:40]!r} as {plan.kind} (node {plan.sink})") from error


def _mark(claim_id: str) -> dict[str, str]:
    return {CLAIM_MARK: claim_id}


def _folder(claim_id: str) -> str:
    return f"distributed-comfy/{claim_id}"


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
