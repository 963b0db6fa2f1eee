"""Values of several items become one: audio along time, latents along the batch.  Tensors are torch's, on the CPU."""
from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from distributed_comfy.errors import BatchDiffers, FrameMalformed, SizesDiffer
from distributed_comfy.messages import TensorRef, Value


def require_one_size(slot: str, shapes: Sequence[Sequence[int]]) -> None:
    """
    Args:
        shapes: of the batches of a slot, [B, ...] each.
    Raises:
        SizesDiffer, BatchDiffers: they differ in more than the batch.
    """
    for index, shape in enumerate(shapes):
        facts = {"index": index, "size": list(shape[1:]), "first": 0, "first_size": list(shapes[0][1:])}
        if list(shape[1:]) != list(shapes[0][1:]):
            raise SizesDiffer(**facts) if slot == "images" else BatchDiffers(slot=slot, **facts)


def joined_tensors(slot: str, values: Sequence[Value], loaded: Iterable[Any]) -> Any:
    """One batch, written value by value into memory that is taken once: the peak is the batch and one value, or a few small ones.

    Args:
        slot: ``images`` or ``masks``; a mask without a batch is one of one.
        values: records of what is joined; at least one.
        loaded: the tensors themselves, in the same order.
    Raises:
        SizesDiffer, BatchDiffers: they differ in more than the batch.
        FrameMalformed: one is no tensor.
    """
    import torch

    refs = [_tensor_ref(slot, value) for value in values]
    sizes = [tuple(ref.shape) if slot == "images" or len(ref.shape) > 2 else (1, *ref.shape) for ref in refs]
    require_one_size(slot, sizes)
    dtype = functools.reduce(torch.promote_types, [getattr(torch, ref.dtype) for ref in refs])
    joined = torch.empty((sum(size[0] for size in sizes), *sizes[0][1:]), dtype=dtype)
    end = 0
    for part, size in zip(loaded, sizes, strict=True):
        joined[end : end + size[0]] = part
        end += size[0]
    return joined


def _tensor_ref(slot: str, value: Value) -> TensorRef:
    if not isinstance(value, TensorRef):
        raise FrameMalformed(reason=f"{slot} came as a {type(value).__name__}")
    return value


def joined_audio(parts: list[Any]) -> dict[str, Any]:
    """One sound after the other.

    Args:
        parts: ``{"waveform": [B, C, T], "sample_rate": Hz}`` of each item.
    Raises:
        SizesDiffer: they have not one rate and one number of channels.
    """
    import torch

    kinds = [(part["sample_rate"], *part["waveform"].shape[:-1]) for part in parts]
    for index, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise SizesDiffer(index=index, size=list(kind), first=0, first_size=list(kinds[0]))
    return {**parts[0], "waveform": torch.cat([part["waveform"] for part in parts], dim=-1)}


def joined_latents(parts: list[Any]) -> dict[str, Any]:
    """One batch of latents.

    A noise mask and a batch index of some items are completed for the others as ComfyUI reads their absence: everything may change,
    and positions from 0.  Other entries are the first item's.

    Args:
        parts: ``{"samples": [B, C, h, w] or [B, C, T, h, w], "noise_mask"?: [.., H, W], "batch_index"?: [int]}`` of each item.
    Raises:
        BatchDiffers: samples or noise masks of different sizes.
        FrameMalformed: a part is no latent.
    """
    import torch

    if not all(isinstance(part, dict) and hasattr(part.get("samples"), "shape") for part in parts):
        raise FrameMalformed(reason="a collected latent has no samples")
    sizes = [len(part["samples"]) for part in parts]
    joined = {**parts[0], "samples": torch.cat(_of_one_shape([part["samples"] for part in parts], "latents"))}
    if any("noise_mask" in part for part in parts):
        joined["noise_mask"] = torch.cat(_noise_masks([part.get("noise_mask") for part in parts], sizes))
    if any("batch_index" in part for part in parts):
        indexes = (part.get("batch_index", range(size)) for part, size in zip(parts, sizes, strict=True))
        joined["batch_index"] = [index for of_item in indexes for index in of_item]
    return joined


def _noise_masks(masks: list[Any], sizes: list[int]) -> list[Any]:
    """Each item's mask, one for each of its latents."""
    import torch

    flat = [mask.reshape((-1, 1, *mask.shape[-2:])) if mask is not None and mask.dim() < 4 else mask for mask in masks]
    model = next(mask for mask in flat if mask is not None)
    whole = [torch.ones((size, *model.shape[1:])) if mask is None else mask for mask, size in zip(flat, sizes, strict=True)]
    spread = [mask.repeat((-(-size // max(len(mask), 1)), *[1] * (mask.dim() - 1)))[:size] for mask, size in zip(whole, sizes, strict=True)]
    return _of_one_shape(spread, "noise masks")


def _of_one_shape(tensors: list[Any], slot: str) -> list[Any]:
    """The tensors, which may differ along the batch only; those of an empty batch are left out beside others."""
    tensors = [tensor for tensor in tensors if len(tensor)] or tensors[:1]
    first = list(tensors[0].shape[1:])
    for index, tensor in enumerate(tensors):
        if list(tensor.shape[1:]) != first:
            raise BatchDiffers(slot=slot, index=index, size=list(tensor.shape[1:]), first=0, first_size=first)
    return tensors
