"""Sources of a prompt as stock nodes that load what a source would give, from files that are put into ComfyUI's input folder.

    IMAGE   LoadImage of a TIFF with 8 bits, ImageBatch to join them       MASK    ImageToMask behind it
    LATENT  LoadLatent of one file (exact)                                 numbers, text    a literal in each input that they feed
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distributed_comfy.engine.joining import require_one_size
from distributed_comfy.errors import BatchDiffers, WorkerLacks
from distributed_comfy.messages import Prompt, TensorRef, Value
from distributed_comfy.transport.latents import latent_file
from distributed_comfy.workflow.graph import Link

Put = Callable[[Path], str]
"""Brings a file into ComfyUI's input folder; its name there."""

_COMPRESSION = "tiff_adobe_deflate"
_RGB = 3


@dataclass
class Supply:
    """What stands for one output of a source."""

    nodes: Prompt = field(default_factory=dict)
    link: Link | None = None
    """Where the value comes from."""
    literal: Any = None
    """The value itself, where it is a number or a text."""
    empty: bool = False
    """There is no value at all, so nothing behind it runs."""


@dataclass(frozen=True)
class SlotFeed:
    """What one slot of a source is fed with."""

    name: str
    """First part of the ids of the nodes for it."""
    slot: str
    refs: tuple[Value, ...]
    """The records of the values."""
    values: Iterable[Any]
    """The values, read one at a time."""


class Supplier:
    """Writes the files of a run and asks for the nodes that load them."""

    def __init__(self, folder: Path, put: Put, worker: str) -> None:
        """Args:
        folder: for the files until they are sent.
        put: sends one.
        worker: its name, for messages.
        """
        self._folder = folder
        self._put = put
        self._worker = worker

    def supply(self, feed: SlotFeed) -> Supply:
        """The nodes for one output of a source.

        Raises:
            WorkerLacks: a value that no stock node loads.
            SizesDiffer, BatchDiffers: values that cannot be joined.
        """
        if not feed.refs:
            return Supply(empty=True)
        if feed.slot == "value" and len(feed.refs) > 1:
            raise self._lacks(f"a list of {len(feed.refs)} values", feed)
        first = feed.refs[0]
        if isinstance(first, TensorRef):
            return self._pictures(feed, masks=len(first.shape) < 4)
        values = list(feed.values)
        if all(isinstance(value, dict) and set(value) == {"samples"} for value in values):
            return self._latents(feed, [value["samples"] for value in values])
        if isinstance(values[0], str | int | float) and len(values) == 1:
            return Supply(literal=values[0])
        kind = f"a dict of {', '.join(sorted(values[0]))}" if isinstance(values[0], dict) else f"a {type(values[0]).__name__}"
        raise self._lacks(kind, feed)

    # -- images and masks -----------------------------------------------------------------------------------------------
    def _pictures(self, feed: SlotFeed, *, masks: bool) -> Supply:
        refs = [ref for ref in feed.refs if isinstance(ref, TensorRef)]
        require_one_size(feed.slot, [tuple(ref.shape) if not masks or len(ref.shape) > 2 else (1, *ref.shape) for ref in refs])
        if not masks and refs[0].shape[3] != _RGB:
            raise self._lacks(f"images with {refs[0].shape[3]} channels", feed)
        supply = Supply()
        for number, value in enumerate(feed.values):
            frames = value.reshape((-1, *value.shape[-2:])) if masks else value
            if len(frames):
                name = self._put(write_tiff(self._folder / f"{number}.tif", frames))
                supply.nodes[f"{feed.name}~{number}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        supply.empty = not supply.nodes
        supply.link = _joined(supply.nodes, feed.name) if supply.nodes else None
        if masks and supply.link:
            inputs = {"image": list(supply.link), "channel": "red"}
            supply.nodes[f"{feed.name}~mask"] = {"class_type": "ImageToMask", "inputs": inputs}
            supply.link = Link(f"{feed.name}~mask", 0)
        return supply

    # -- latents --------------------------------------------------------------------------------------------------------
    def _latents(self, feed: SlotFeed, samples: list[NDArray[Any]]) -> Supply:
        """Joined here: LatentBatch would add a batch index, which changes the noise that is made for them later."""
        for index, part in enumerate(samples):
            if part.shape[1:] != samples[0].shape[1:]:
                sizes = {"size": list(part.shape[1:]), "first_size": list(samples[0].shape[1:])}
                raise BatchDiffers(slot="latents", index=index, first=0, **sizes)
        name = self._put(write_latent(self._folder / "joined.latent", np.concatenate(samples)))
        node = {"class_type": "LoadLatent", "inputs": {"latent": name}}
        return Supply({f"{feed.name}~latent": node}, Link(f"{feed.name}~latent", 0))

    def _lacks(self, what: str, feed: SlotFeed) -> WorkerLacks:
        return WorkerLacks(worker=self._worker, lacks=f"a way of supplying {what} (node {feed.name})")


def _joined(nodes: Prompt, name: str) -> Link:
    """One batch of what all nodes load; added to ``nodes``.  Pairs of pairs, so that no image is copied more than a few times."""
    row = [Link(node_id, 0) for node_id in nodes]
    while len(row) > 1:
        pairs = list(_pairs(row))
        row = []
        for pair in pairs:
            if len(pair) == 1:
                row.append(pair[0])
                continue
            node_id = f"{name}~join{len(nodes)}"
            nodes[node_id] = {"class_type": "ImageBatch", "inputs": {"image1": list(pair[0]), "image2": list(pair[1])}}
            row.append(Link(node_id, 0))
    return row[0]


def _pairs(row: Sequence[Link]) -> Iterator[Sequence[Link]]:
    return (row[start : start + 2] for start in range(0, len(row), 2))


def write_tiff(path: Path, frames: NDArray[Any]) -> Path:
    """Images [B, H, W, 3] or masks [B, H, W] as pages of 8 bits, rounded down as ComfyUI's SaveImage does it.

    TIFF and not PNG, because LoadImage makes a batch of its pages; an animated PNG would lose a frame that equals the one before.
    """
    scaled = np.nan_to_num(np.clip(255.0 * frames.astype(np.float32), 0, 255)).astype(np.uint8)
    pages = [Image.fromarray(page) for page in scaled]
    pages[0].save(path, "TIFF", save_all=True, append_images=pages[1:], compression=_COMPRESSION)
    return path


def write_latent(path: Path, samples: NDArray[Any]) -> Path:
    """Samples as SaveLatent writes them, as 32-bit floats, which is what LoadLatent gives."""
    path.write_bytes(latent_file(samples.astype(np.float32)))
    return path
