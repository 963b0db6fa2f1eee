"""Pictures inside the patches of a model, cut to a tile."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from distributed_comfy.engine.comfyui.crops.lay import same_aspect
from distributed_comfy.engine.comfyui.crops.planes import MASK, SMOOTH_HINT, crop_images, crop_planes
from distributed_comfy.workflow.region import Region

IMAGES = ("image", "inpaint_image")
"""Arguments of ComfyUI's control patches that are images; the patch keeps each under its name and encodes it when it is made."""
ENCODED = "encoded_image"
"""What such a patch is known by, besides its images."""


def crop_patches(model: Any, region: Region, tell: Callable[[str, str], None]) -> Any:
    """A clone of a model with the images of its patches cut to a region; the model itself where it has none.

    Args:
        model: ComfyUI's ``ModelPatcher``; not changed. The clone shares its weights.
        region: of the tile.
        tell: as `entries.EntryCrops.tell`.
    """
    places = [place for place in _patches(model) if _is_control_patch(place[2])]
    for _, _, patch in _patches(model):
        if not _is_control_patch(patch):
            _tell_of_pictures(patch, region, tell)
    if not places:
        return model
    clone = _clone(model)
    patches = clone.model_options["transformer_options"]["patches"]
    for name, position, patch in places:
        patches[name][position] = _cropped(patch, region)
    return clone


def _clone(model: Any) -> Any:
    """As ``model.clone()``, with the same patches: some versions copy them whole, with the images and weights that they hold."""
    options = model.model_options
    model.model_options = {}
    try:
        clone = model.clone()
    finally:
        model.model_options = options
    clone.model_options = _copied(options)
    return clone


def _copied(options: Any) -> Any:
    """Dicts and lists anew, what is in them as it is."""
    if isinstance(options, dict):
        return {name: _copied(value) for name, value in options.items()}
    return [_copied(value) for value in options] if isinstance(options, list) else options


def _patches(model: Any) -> Iterator[tuple[str, int, Any]]:
    """(kind, position, patch) of each."""
    for name, patches in model.model_options.get("transformer_options", {}).get("patches", {}).items():
        for position, patch in enumerate(patches):
            yield name, position, patch


def _is_control_patch(patch: Any) -> bool:
    """True for a patch that can be made anew from what it keeps: every argument of its class is an attribute of that name."""
    kept = getattr(patch, "__dict__", {})
    if ENCODED not in kept or getattr(kept.get("image"), "ndim", 0) != 4:
        return False
    return all(name in kept for name in inspect.signature(type(patch)).parameters)


def _cropped(patch: Any, region: Region) -> Any:
    kept = {name: getattr(patch, name) for name in inspect.signature(type(patch)).parameters}
    for name in IMAGES:
        if kept.get(name) is not None:
            kept[name] = crop_images(kept[name], region, SMOOTH_HINT)
    if kept.get("mask") is not None:
        kept["mask"] = crop_planes(kept["mask"], region, MASK)
    return type(patch)(**kept)


def _tell_of_pictures(patch: Any, region: Region, tell: Callable[[str, str], None]) -> None:
    for name, value in getattr(patch, "__dict__", {}).items():
        if getattr(value, "ndim", 0) == 4 and (same_aspect(value.shape[-2:], region) or same_aspect(value.shape[-3:-1], region)):
            subject = f"{type(patch).__name__}.{name}"
            tell(subject, f"{subject} of {list(value.shape)} is nothing known here, so every tile sees all of it")
