"""Chains of ControlNets, T2I adapters and control LoRAs with their hints cut to a tile."""
from __future__ import annotations

import weakref
from typing import Any

from distributed_comfy.engine.comfyui.crops.planes import HINT, SMOOTH_HINT, crop_planes
from distributed_comfy.workflow.region import Region

NEAREST = "nearest-exact"
"""How most control models scale their hints; those that do otherwise do it smoothly."""


class ControlCrops:
    """The control objects of tiles, made from those that nodes keep in ComfyUI's cache.

    A prompt's positive and negative share one object, and ComfyUI puts the two into one batch only if they do. So the crop of an object
    for a region is found again as long as anybody has it: the conditionings of all tiles of an item are cut before the first is sampled.
    """

    def __init__(self) -> None:
        self._crops: weakref.WeakKeyDictionary[Any, weakref.WeakValueDictionary[Region, Any]] = weakref.WeakKeyDictionary()

    def crop(self, control: Any, region: Region) -> Any:
        """A copy of a control object, and of all before it in its chain, whose hints show a region; weights are shared."""
        crops = self._crops.setdefault(control, weakref.WeakValueDictionary())
        known = crops.get(region)
        if known is not None:
            return known
        copy = control.copy()
        kind = HINT if getattr(control, "upscale_algorithm", NEAREST) == NEAREST else SMOOTH_HINT
        if control.cond_hint_original is not None:
            copy.cond_hint_original = crop_planes(control.cond_hint_original, region, kind)
        copy.extra_concat_orig = [crop_planes(planes, region, kind) for planes in getattr(control, "extra_concat_orig", ())]
        if control.previous_controlnet is not None:
            copy.set_previous_controlnet(self.crop(control.previous_controlnet, region))
        crops[region] = copy
        return copy
