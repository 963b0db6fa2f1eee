"""ComfyUI's conditionings and models, cut to a tile: what the tile nodes of this engine call."""
from __future__ import annotations

import logging
from typing import Any

from distributed_comfy.engine.comfyui.crops.controls import ControlCrops
from distributed_comfy.engine.comfyui.crops.entries import EntryCrops
from distributed_comfy.engine.comfyui.crops.filling import fill_up
from distributed_comfy.engine.comfyui.crops.patches import crop_patches
from distributed_comfy.workflow.region import Region

log = logging.getLogger(__name__)


class ComfyTileCropper:
    """The `nodes.tiles.TileCropper` of this engine; one per process."""

    def __init__(self) -> None:
        self._controls = ControlCrops()
        self._told: set[str] = set()

    def fill_up(self, pixels: Any, vae: Any) -> Any:
        """See `crops.filling.fill_up`."""
        return fill_up(pixels, vae)

    def crop_conditioning(self, conditioning: Any, region: Region) -> Any:
        """The entries that concern a region, cut to it.

        An entry whose area or mask lies outside is left out, which saves its share of the sampling. Where all do, the first stands in
        for the whole tile, because a model needs one.
        """
        crops = EntryCrops(region, self._controls, self._tell)
        cropped = [crops.crop(tokens, facts) for tokens, facts, *_ in conditioning]
        kept = [entry for entry in cropped if entry is not None]
        if kept or not conditioning:
            return kept
        self._tell("place", "a tile lies outside the areas and masks of all parts of a prompt; the first part counts for all of it")
        return [crops.crop_everywhere(*conditioning[0][:2])]

    def crop_model(self, model: Any, region: Region) -> Any:
        """See `crops.patches.crop_patches`."""
        return crop_patches(model, region, self._tell)

    def _tell(self, subject: str, line: str) -> None:
        if subject not in self._told:
            self._told.add(subject)
            log.info("%s", line)
