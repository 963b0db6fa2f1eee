"""The internal nodes of tiles: where they lie, what they share, and what of model, conditioning and noise belongs to each.

Planning puts them between the user's nodes and the sampler.  An item may have several tiles: `DistributedTileRegions` gives lists, so
the engine runs the others, and the sampler, once for each tile.  What cutting does depends on the engine's own objects, so an engine hands
its cropper to `bind`.
"""
from __future__ import annotations

from typing import Any, ClassVar, Protocol

from distributed_comfy.errors import UpscaleInputWrong
from distributed_comfy.nodes.any_type import AnyType
from distributed_comfy.workflow.classes import TILE_INPUT_NAMES, TILES_INPUT
from distributed_comfy.workflow.region import Region, read_tasks

_REGION = "DISTRIBUTED_TILE_REGION"
"""The type of a link that carries a `Region`."""
_KINDS = {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "vae": "VAE"}
_SEED = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1})
_DENOISE = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0})
_LATENT_AXES = 4  # batch, channels, height, width; a video's has time, too


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


class DistributedTileRegions:
    """Where the tiles of an item lie, and their seeds and denoises: lists of one length, in the order of the crops."""

    RETURN_TYPES = (_REGION, "INT", "FLOAT")
    RETURN_NAMES = ("region", "seed", "denoise")
    OUTPUT_IS_LIST = (True, True, True)
    FUNCTION = "read"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: tells the other nodes of the tiles of an item."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs; ``tiles`` is a text of `tasks_text`."""
        return {"required": {TILES_INPUT: ("STRING", {"default": "[]"}), "seed": _SEED, "denoise": _DENOISE}}

    def read(self, tiles: str, seed: int, denoise: float) -> tuple[list[Region], list[int], list[float]]:
        """Regions, seeds, denoises; a tile that has no seed or denoise of its own gets the upscale's."""
        tasks = read_tasks(tiles)
        seeds = [seed if task.seed is None else task.seed for task in tasks]
        return [task.region for task in tasks], seeds, [denoise if task.denoise is None else task.denoise for task in tasks]


class DistributedTileInputs:
    """What the user's nodes give to all tiles: one value of each, because a list would be dealt out to the tiles of an item."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = tuple(_KINDS.get(name, AnyType("*")) for name in TILE_INPUT_NAMES)
    RETURN_NAMES = TILE_INPUT_NAMES
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,) * len(TILE_INPUT_NAMES)
    FUNCTION = "hand_on"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: hands on what all tiles of an upscale share."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs; those that the user typed in are not linked."""
        kinds = {name: (_KINDS.get(name, AnyType("*")),) for name in TILE_INPUT_NAMES}
        return {"required": {}, "optional": kinds, "hidden": {"unique_id": "UNIQUE_ID"}}

    def hand_on(self, unique_id: list[str], **given: list[Any]) -> tuple[list[Any], ...]:
        """The values as they came.

        Raises:
            UpscaleInputWrong: one came as a list of several.
        """
        for name, values in given.items():
            if len(values) > 1:
                node_id = unique_id[0].rpartition("~")[0]
                expected = "one value, the same for all tiles"
                raise UpscaleInputWrong(node_id=node_id, input=name, value=f"a list of {len(values)} values", expected=expected)
        return tuple(given.get(name, []) for name in TILE_INPUT_NAMES)


class DistributedTileLatent:
    """The latent of a tile, with the place of each frame in the clip.

    A sampler draws the noise of a batch frame by frame, so without it the first frame of each group would get the first frame's noise.
    """

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "place"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: tells a sampler which frames of a clip it has."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {"latent": ("LATENT",), "region": (_REGION,)}}

    def place(self, latent: Any, region: Region) -> tuple[Any]:
        """The latent with ``batch_index``; one frame that is all there is, and a latent with an axis of time, stay as they are.

        All items of a clip get it, also one with all frames: `torch` draws numbers in blocks, so where a frame's latent is no whole number
        of blocks, noise drawn frame by frame is not that of the batch in one go, and groups of other sizes would give other pixels.
        """
        samples = latent["samples"]
        if samples.ndim != _LATENT_AXES or (not region.frames and len(samples) == 1):
            return (latent,)
        return ({**latent, "batch_index": list(range(region.first_frame, region.first_frame + len(samples)))},)


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
        """ComfyUI's declaration of the inputs."""
        return {"required": {"conditioning": ("CONDITIONING",), "region": (_REGION,)}}

    def crop(self, conditioning: Any, region: Region) -> tuple[Any]:
        """The conditioning of the tile."""
        return (self.cropper.crop_conditioning(conditioning, region),)


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
        """ComfyUI's declaration of the inputs."""
        return {"required": {"model": ("MODEL",), "region": (_REGION,)}}

    def crop(self, model: Any, region: Region) -> tuple[Any]:
        """The model of the tile."""
        return (self.cropper.crop_model(model, region),)
