"""The entries of a conditioning, ``[tokens, facts]`` each, cut to a tile."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from distributed_comfy.engine.comfyui.crops.areas import WHOLE, crop_area, crop_boxes
from distributed_comfy.engine.comfyui.crops.controls import ControlCrops
from distributed_comfy.engine.comfyui.crops.lay import same_aspect
from distributed_comfy.engine.comfyui.crops.planes import ENCODED, MASK, REFERENCE, Kind, crop_planes
from distributed_comfy.workflow.region import Region

Facts = dict[str, Any]

ENCODED_FACTS = (
    "concat_latent_image", "concat_mask", "concat_image", "noise_concat", "stable_cascade_prior", "vace_frames", "vace_mask",
    "control_video", "pose_video_latent", "time_dim_concat", "reference_motion", "camera_conditions",
)  # fmt: skip
"""Pictures, latents and masks that models lay over the image pixel by pixel: tensors or lists of tensors."""
REFERENCE_FACTS = ("reference_latents", "ref_latent")
"""Latents that models look at beside the image; they show the canvas, or something else."""
UNPLACED_FACTS = ("conditioning_llama3", "face_video_pixels", "audio_embed")
"""Tensors of four axes that have nothing to do with the canvas."""
_HANDLED = frozenset({"mask", *ENCODED_FACTS, *REFERENCE_FACTS, *UNPLACED_FACTS})
_LEAST_SIDE = 4  # a picture smaller than that is none


@dataclass(frozen=True)
class EntryCrops:
    """Cuts entries to one region."""

    region: Region
    controls: ControlCrops
    tell: Callable[[str, str], None]
    """Takes a subject and a line about it for the log, of which one is enough."""

    def crop(self, tokens: Any, facts: Facts) -> list[Any] | None:
        """An entry of the tile; None where it concerns nothing in it. The facts are not changed."""
        placed = self._placed(facts)
        if placed is None:
            return None
        for name, cut in (("control", self._control), ("gligen", self._gligen)):
            if placed.get(name) is not None:
                placed[name] = cut(placed[name])
        if placed.get("gligen", 0) is None:
            del placed["gligen"]
        for name in placed.keys() & {*ENCODED_FACTS}:
            placed[name] = self._pictures(placed[name], ENCODED)
        for name in placed.keys() & {*REFERENCE_FACTS}:
            placed[name] = self._references(name, placed[name])
        self._tell_of_others(placed)
        return [tokens, placed]

    def crop_everywhere(self, tokens: Any, facts: Facts) -> list[Any]:
        """The entry for all of the tile, wherever it was to count."""
        kept = {name: value for name, value in facts.items() if name not in ("area", "mask", "set_area_to_bounds")}
        cropped = self.crop(tokens, kept)
        assert cropped is not None, "an entry without a place cannot lie outside"
        return cropped

    def _placed(self, facts: Facts) -> Facts | None:
        """A copy with area and mask of the tile."""
        placed = dict(facts)
        if placed.get("area") is not None:
            area = crop_area(placed["area"], self.region)
            if area is None:
                return None
            placed["area"] = area
            if area == WHOLE:
                del placed["area"]
        if placed.get("mask") is not None:
            placed["mask"] = crop_planes(placed["mask"], self.region, MASK)
            if not bool(placed["mask"].any()):
                return None
        return placed

    def _control(self, control: Any) -> Any:
        return self.controls.crop(control, self.region)

    def _gligen(self, gligen: tuple[Any, ...]) -> Any:
        """``("position", model, boxes)`` with the boxes of the tile; None without any."""
        kind, model, boxes, *rest = gligen
        cropped = crop_boxes(boxes, self.region)
        return (kind, model, cropped, *rest) if cropped else None

    def _pictures(self, value: Any, kind: Kind) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._pictures(part, kind) for part in value)
        return crop_planes(value, self.region, kind) if _is_picture(value) else value

    def _references(self, name: str, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._references(name, part) for part in value)
        if not _is_picture(value):
            return value
        if not same_aspect(value.shape[-2:], self.region):
            self.tell(name, f"{name} of {list(value.shape)} has not the aspect of the image, so every tile sees all of it")
            return value
        return crop_planes(value, self.region, REFERENCE)

    def _tell_of_others(self, facts: Facts) -> None:
        for name, value in facts.items():
            if name not in _HANDLED:
                for picture in _pictures_in(value):
                    if same_aspect(picture.shape[-2:], self.region) or same_aspect(picture.shape[-3:-1], self.region):
                        self.tell(name, f"{name} of {list(picture.shape)} is nothing known here, so every tile sees all of it")


def _is_picture(value: Any) -> bool:
    return getattr(value, "ndim", 0) >= 3


def _pictures_in(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _pictures_in(part)
    elif getattr(value, "ndim", 0) >= 4 and min(value.shape[-2:]) >= 1 and min(value.shape[-3:-1]) >= _LEAST_SIDE:
        yield value
