"""Captures in their order: by item, then position in the list that the graph gave, then place in the batch.

Everything works on one capture at a time, mapped from the spool, so a large job never lies in memory whole unless a caller asks for one
batch.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed_comfy.collector.spool import Spool
from distributed_comfy.errors import AudioDiffers, BatchDiffers, PictureUnsavable, SizesDiffer
from distributed_comfy.messages import ItemResult, LiteralValue, MappingValue, TensorRef, Value

SILENCE_HZ = 44_100
"""Sample rate of the audio of a collector that got none."""


@dataclass(frozen=True)
class PlacedValue:
    """A captured value and where it belongs."""

    index: int
    """The item."""
    list_index: int
    value: Value


@dataclass(frozen=True)
class PlacedImages:
    """One captured batch of images and where it belongs."""

    index: int
    """The item."""
    list_index: int
    images: NDArray[Any]
    """[B, H, W, C], read-only."""


@dataclass(frozen=True)
class Audio:
    """A joined track."""

    waveform: NDArray[Any]
    """[B, channels, samples]."""
    sample_rate: int
    """Hz."""


def placed_values(spool: Spool, node_id: str, slot: str, stand_ins: Mapping[int, int] = MappingProxyType({})) -> list[PlacedValue]:
    """All values that one sink's slot captured, in order; an item that was blocked has none.

    Batches of nothing are left out beside others, because their size means nothing.

    Args:
        stand_ins: missing item -> the one whose values (under its own index) come in its place.
    """
    order = [stand_ins.get(index, index) for index in sorted({*spool.items(), *stand_ins})]
    values = [placed for index in order for placed in values_of_item(index, spool.result(index), node_id, slot)]
    return [placed for placed in values if not _is_empty_batch(placed.value)] or values


def values_of_item(index: int, result: ItemResult, node_id: str, slot: str) -> list[PlacedValue]:
    """The values that one sink's slot captured in one item, in order."""
    captures = [capture for capture in result.captures if (capture.node_id, capture.slot) == (node_id, slot)]
    return [PlacedValue(index, capture.list_index, capture.value) for capture in sorted(captures, key=lambda capture: capture.list_index)]


def blocked_items(spool: Spool, node_id: str) -> list[int]:
    """Items in which nothing reached this collector because something upstream was blocked or lazily skipped."""
    return [index for index in spool.items() if node_id in spool.result(index).blocked]


def collected_images(spool: Spool, node_id: str) -> Iterator[PlacedImages]:
    """The images of one collector, capture by capture.

    Raises:
        PictureUnsavable: something other than a batch of images was captured.
        FrameError: a file of the spool was damaged.
    """
    for placed in placed_values(spool, node_id, "images"):
        yield PlacedImages(placed.index, placed.list_index, spool.array(placed.index, image_ref(placed)))


def image_ref(placed: PlacedValue) -> TensorRef:
    """The captured batch of images.

    Raises:
        PictureUnsavable: it is not [B, H, W, C].
    """
    if not isinstance(placed.value, TensorRef) or len(placed.value.shape) != 4:
        raise PictureUnsavable(index=placed.index, shape=_format(placed.value))
    return placed.value


def joined_images(spool: Spool, node_id: str) -> NDArray[Any]:
    """All images of one collector as one batch in memory.

    Returns:
        [N, H, W, C] in the captured element type; [0, 64, 64, 3] float32 where every item was blocked.
    Raises:
        SizesDiffer: an item's images have another size than the first's; the message names both.
        PictureUnsavable, FrameError: as `collected_images`.
    """
    check = BatchCheck()
    refs = [(placed.index, image_ref(placed)) for placed in placed_values(spool, node_id, "images")]
    for index, ref in refs:
        check.note(index, (node_id, "images"), _image_size(ref))
    if not refs:
        return np.zeros((0, 64, 64, 3), np.float32)
    first = spool.array(*refs[0])
    batch = np.empty((sum(ref.shape[0] for _, ref in refs), *first.shape[1:]), first.dtype)
    end = 0
    for index, ref in refs:
        start, end = end, end + ref.shape[0]
        batch[start:end] = spool.array(index, ref)
    return batch


def joined_audio(spool: Spool, node_id: str) -> Audio:
    """The audio of one collector, one item's samples after the other's.

    Returns:
        The track; one silent stereo sample [1, 2, 1] at 44.1 kHz where there is none.
    Raises:
        AudioDiffers: an item's audio has another rate or other channels than the first's, or is no audio.
        FrameError: a file of the spool was damaged.
    """
    check = BatchCheck()
    waves: list[NDArray[Any]] = []
    sample_rate = SILENCE_HZ
    for placed in placed_values(spool, node_id, "audio"):
        check.note(placed.index, (node_id, "audio"), _audio_format(placed.value))
        parts = audio_parts(placed.value)
        if parts is None:
            raise AudioDiffers(index=placed.index, format=_format(placed.value), first=0, first_format="channels at a sample rate")
        waves.append(spool.array(placed.index, parts[0]))
        sample_rate = parts[1]
    return Audio(np.concatenate(waves, axis=-1) if waves else np.zeros((1, 2, 1), np.float32), sample_rate)


def edge_values(spool: Spool, edge: str) -> list[Any]:
    """What crossed the cut at this edge, from item 0: arrays, dicts of arrays and scalars, or scalars; one per list position."""
    return [_plain(spool, 0, placed.value) for placed in values_of_item(0, spool.result(0), edge, "value")]


class BatchCheck:
    """Compares every item's images and audio with the first that came, from the records alone, in any order of arrival."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], tuple[int, str]] = {}

    def add(self, index: int, result: ItemResult) -> None:
        """Compare one item's captures.

        Raises:
            SizesDiffer, AudioDiffers, BatchDiffers: it cannot be in one batch with an item that came before; both are named, the lower
                one first.
        """
        for capture in result.captures:
            form = _FORMS.get(capture.slot)
            if form is not None and not _is_empty_batch(capture.value):
                self.note(index, (capture.node_id, capture.slot), form(capture.value))

    def note(self, index: int, place: tuple[str, str], found: str) -> None:
        """Compare what one item has at one slot of one collector; errors as `add`."""
        first, expected = self._first.setdefault(place, (index, found))
        if found == expected:
            return
        if first > index:
            first, expected, index, found = index, found, first, expected
        if place[1] == "audio":
            raise AudioDiffers(index=index, format=found, first=first, first_format=expected)
        if place[1] == "images":
            raise SizesDiffer(index=index, size=found, first=first, first_size=expected)
        raise BatchDiffers(slot=place[1], index=index, size=found, first=first, first_size=expected)


def _is_empty_batch(value: Value) -> bool:
    tensor = value if isinstance(value, TensorRef) else samples_ref(value)
    return tensor is not None and tensor.shape[:1] == (0,)


def _image_size(value: Value) -> str:
    """Everything of a batch of images that must agree: ``512 x 768, 3 channels``."""
    if not isinstance(value, TensorRef) or len(value.shape) != 4:
        return f"shape {_format(value)}"
    _, height, width, channels = value.shape
    return f"{width} x {height}, {channels} channels"


def _audio_format(value: Value) -> str:
    """Everything of a track that must agree: ``2 channels at 44100 Hz``."""
    parts = audio_parts(value)
    if parts is None:
        return _format(value)
    (batch, channels, _), rate = parts[0].shape, parts[1]
    return f"{channels} channels at {rate} Hz" + (f" in {batch} tracks" if batch != 1 else "")


def _mask_size(value: Value) -> str:
    """Everything of a batch of masks that must agree: ``512 x 768``."""
    if not isinstance(value, TensorRef) or len(value.shape) not in (2, 3):
        return f"shape {_format(value)}"
    return f"{value.shape[-1]} x {value.shape[-2]}"


def _latent_size(value: Value) -> str:
    """Everything of a batch of latents that must agree: the shape of one, ``4 x 64 x 96``."""
    samples = samples_ref(value)
    return " x ".join(map(str, samples.shape[1:])) if samples is not None else _format(value)


def samples_ref(value: Value) -> TensorRef | None:
    """The samples of a latent [B, C, ...]; None where the value is no latent."""
    samples = value.entries.get("samples") if isinstance(value, MappingValue) else None
    return samples if isinstance(samples, TensorRef) else None


def audio_parts(value: Value) -> tuple[TensorRef, int] | None:
    """Waveform and sample rate; None where the value is no audio."""
    entries = value.entries if isinstance(value, MappingValue) else {}
    wave, rate = entries.get("waveform"), entries.get("sample_rate")
    if isinstance(wave, TensorRef) and len(wave.shape) == 3 and isinstance(rate, LiteralValue) and isinstance(rate.literal, int):
        return wave, rate.literal
    return None


def _format(value: Value) -> str:
    """A value's kind, for messages."""
    if isinstance(value, TensorRef):
        return str(list(value.shape))
    return f"a dict of {', '.join(value.entries)}" if isinstance(value, MappingValue) else repr(value.literal)


def _plain(spool: Spool, index: int, value: Value) -> Any:
    if isinstance(value, TensorRef):
        return spool.array(index, value)
    if isinstance(value, MappingValue):
        return {name: _plain(spool, index, entry) for name, entry in value.entries.items()}
    return value.literal


_FORMS: Mapping[str, Callable[[Value], str]] = {
    "images": _image_size, "audio": _audio_format, "latents": _latent_size, "masks": _mask_size,
}  # fmt: skip
"""Slot -> what must agree between items, in words."""
