"""What the record of a job says about its upscale: the user's choices, what a tile runs, and where all that it needs comes from."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["chess", "linear", "independent"]
"""Which tiles see others already redrawn; the first word of each kind is what an upscale does by default."""
SeamFixKind = Literal["none", "band_pass", "half_tile", "half_tile_intersections"]
TileSeeds = Literal["same", "offset"]
"""One seed for all steps, or each its own: the seed + the step's index."""
Determinism = Literal["any", "same-class"]
"""Tiles on all workers, or on those of one device class."""


@dataclass(frozen=True)
class TileGeometry:
    """How an upscale is tiled: the user's choices, checked, in the words and units (pixels) of the node's inputs."""

    tile_width: int
    tile_height: int
    padding: int
    """Context round a tile that the model sees; cut off again."""
    mask_blur: int
    """Full width of the ramp between two tiles."""
    uniform: bool
    """All tiles are read at one size."""
    mode: Mode
    seam_fix: SeamFixKind
    seam_fix_denoise: float
    seam_fix_width: int
    seam_fix_mask_blur: int
    seam_fix_padding: int
    tile_seeds: TileSeeds
    denoise: float | None
    """Of the tiles, 0 to 1; None where it comes from a node and only the run knows it."""


@dataclass(frozen=True)
class ValuePlace:
    """Where a value lies among the results of a job."""

    item: Literal["every", "first", "prepare"]
    """``every``: a collector's, joined over all generated items; ``first``: a capture of item 0; ``prepare``: one of that item."""
    node_id: str
    """The collector, or the sink of the edge."""
    slot: str


@dataclass(frozen=True)
class TileConstant:
    """A value that every tile takes from the same place, such as a picture for a ControlNet."""

    source_id: str
    """The source node in the tile's prompt, which has the slot of `place`."""
    place: ValuePlace


@dataclass(frozen=True)
class PrepareStage:
    """What the item that makes the image to upscale is fed with."""

    collectors: tuple[str, ...] = ()
    """Ids of the collectors of which it takes every wired slot."""
    edges: tuple[str, ...] = ()
    """Sink ids of item 0's captures that it takes."""


@dataclass(frozen=True)
class TileStage:
    """An upscale of a job: what a tile runs, and where all that it needs comes from."""

    node_id: str
    """Of the upscale in the user's prompt; in the tiles' prompt the sink of the results (slot ``images``), in the last stage the source."""
    image: ValuePlace
    """The image to upscale, [B, H, W, C]; several values are its batches in order."""
    prompt_hash: str
    """Of the prompt of every tile."""
    targets: tuple[str, ...]
    pixels: str
    """The source of the crops, slot ``value``: a list, one for each tile of the item."""
    regions: str
    """The node with the input ``tiles``, which is told of the tiles of an item in the order of the crops."""
    seed: str
    """The upscale's own seed in decimal; empty where it comes from a node and only the run knows it."""
    geometry: TileGeometry
    constants: tuple[TileConstant, ...] = ()
    prepare: PrepareStage | None = None
    """None where there is no such item."""
    late_edges: tuple[str, ...] = ()
    """Sink ids of the prepare item's captures that the last stage takes, beside those of item 0."""
    deterministic: Determinism = "any"
    item_bytes: int = 2**28
    """Pixels of one crop over all frames of its item, float32 (``DC_TILE_ITEM_BYTES`` of the submitter): more frames are more items."""
    item_pixels: int = 2**16
    """Small tiles go together into one item until their crops, over all frames, have so many pixels; 0: each by itself."""
    # These are tiler's own, which is not imported here: every command loads this, and first looks whether a foreign tiler is in the way.
    item_tiles: int = 16
    """But so many at most."""
    level_shares: int = 8
    """And a level is at least so many items, where it has so many tiles."""
    plan_version: int = 1
    """Of the rules that the numbers of tiles and items follow from."""

    @property
    def made_from(self) -> frozenset[str]:
        """Collectors and sinks of whose values the tiles are made."""
        places = (self.image, *(constant.place for constant in self.constants))
        return frozenset([*(place.node_id for place in places), *(self.prepare.collectors if self.prepare else ())])

    @property
    def takes_first(self) -> bool:
        """True where image, constants or the prepare item need a capture of item 0."""
        places = (self.image, *(constant.place for constant in self.constants))
        return bool(self.prepare and self.prepare.edges) or any(place.item == "first" for place in places)
