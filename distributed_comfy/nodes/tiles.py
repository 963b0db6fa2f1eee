"""The internal nodes of tiles: where they lie, what they share, and what of pixels, model, conditioning and noise belongs to each.

Planning puts them between the user's nodes and the sampler.  An item may have several tiles: `DistributedTileRegions` gives lists, so
the engine runs the others, and the sampler, once for each tile.  What cutting does depends on the engine's own objects, so an engine hands
its cropper to `bind`.
"""
from __future__ import annotations

from dataclasses import replace
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
    """An engine's way of cutting what goes with an image, and of filling up what its VAEs need larger."""

    def fill_up(self, pixels: Any, vae: Any) -> Any:
        """Images [B, H, W, C] whose last frame, row and column are repeated up to a size that the VAE gives back; themselves if it does."""

    def crop_conditioning(self, conditioning: Any, region: Region) -> Any:
        """What of a conditioning concerns a region, with all places told from the region's corner; the argument stays as it is."""

    def crop_model(self, model: Any, region: Region) -> Any:
        """The model with the pictures of its patches cut to a region; the model itself where it has none."""


class Uncropped:
    """The cropper of an engine whose models and conditionings hold no pictures and no places, and whose VAEs keep the size of any crop."""

    def fill_up(self, pixels: Any, vae: Any) -> Any:
        """The pixels as they are."""
        return pixels

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


class DistributedTilePixels:
    """The pixels of a tile as its VAE can give them back: of enough frames, rows and columns."""

    cropper: ClassVar[TileCropper] = Uncropped()
    """Set in the subclass that `bind` makes."""

    RETURN_TYPES = ("IMAGE", _REGION)
    RETURN_NAMES = ("pixels", "region")
    FUNCTION = "fill_up"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: repeats the edges of a tile up to a size that its VAE gives back."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {"crop": ("IMAGE",), "region": (_REGION,), "vae": ("VAE",)}}

    def fill_up(self, crop: Any, region: Region, vae: Any) -> tuple[Any, Region]:
        """The pixels, and the region in whose size everything else is cut; most VAEs need nothing, then both are what came."""
        pixels = self.cropper.fill_up(crop, vae)
        if pixels is crop:
            return crop, region
        return pixels, replace(region, process_height=int(pixels.shape[1]), process_width=int(pixels.shape[2]))


class DistributedTileImage:
    """A decoded tile without what `DistributedTilePixels` added."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "cut"
    CATEGORY = "distributed/internal"
    DESCRIPTION = "Internal: cuts off what was added to a tile for its VAE."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs: what was decoded, the tile's own crop, and what was encoded."""
        return {"required": {"image": ("IMAGE",), "crop": ("IMAGE",), "pixels": ("IMAGE",)}}

    def cut(self, image: Any, crop: Any, pixels: Any) -> tuple[Any]:
        """The tile in the size of its crop.

        An image of another size than what was encoded stays as it is: there is no telling which part of it is the tile, and the master
        refuses it with both sizes.
        """
        if pixels is crop or image.shape[:3] != pixels.shape[:3]:
            return (image,)
        frames, height, width = crop.shape[:3]
        return (image[:frames, :height, :width],)


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
