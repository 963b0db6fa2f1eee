"""The two internal nodes that show a model only what lies in one tile: its conditioning, and the pictures in its patches.

Planning puts them between the user's nodes and the sampler of each tile. What they do depends on the engine's own objects, so an engine
hands its cropper to `bind`.
"""
from __future__ import annotations

from typing import Any, ClassVar, Protocol

from distributed_comfy.workflow.region import FRAME_INPUTS, REGION_INPUTS, Region

_PIXELS = ("INT", {"default": 0, "min": 0, "max": 2**31 - 1})


class TileCropper(Protocol):
    """An engine's way of cutting what goes with an image."""

    def crop_conditioning(self, conditioning: Any, region: Region) -> Any:
        """What of a conditioning concerns a region, with all places told from the region's corner; the argument stays as it is."""

    def crop_model(self, model: Any, region: Region) -> Any:
        """The model with the pictures of its patches cut to a region; the model itself where it has none."""


class Uncropped:
    """The cropper of an engine whose models and conditionings hold no pictures and no places."""

    def crop_conditioning(self, conditioning: Any, region: Region) -> Any:
        """The conditioning as it is."""
        return conditioning

    def crop_model(self, model: Any, region: Region) -> Any:
        """The model as it is."""
        return model


class DistributedTileConditioning:
    """What a conditioning says about one tile: areas, masks, control hints and latents cut to it."""

    cropper: ClassVar[TileCropper] = Uncropped()
    """Set in the subclass that `bind` makes."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "crop"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: cuts a conditioning to one tile."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs; the numbers are those of a `Region`."""
        return _inputs("conditioning", "CONDITIONING")

    def crop(self, conditioning: Any, **region: int) -> tuple[Any]:
        """The conditioning of the tile."""
        return (self.cropper.crop_conditioning(conditioning, Region(**region)),)


class DistributedTileModel:
    """A model whose patches see one tile of their pictures."""

    cropper: ClassVar[TileCropper] = Uncropped()
    """Set in the subclass that `bind` makes."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "crop"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: cuts the pictures in a model's patches to one tile."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs; the numbers are those of a `Region`."""
        return _inputs("model", "MODEL")

    def crop(self, model: Any, **region: int) -> tuple[Any]:
        """The model of the tile."""
        return (self.cropper.crop_model(model, Region(**region)),)


def _inputs(name: str, kind: str) -> dict[str, Any]:
    return {
        "required": {name: (kind,), **dict.fromkeys(REGION_INPUTS, _PIXELS)},
        "optional": dict.fromkeys(FRAME_INPUTS, _PIXELS),
    }
