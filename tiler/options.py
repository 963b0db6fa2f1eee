"""What a user chooses about tiles, and what of it cannot work."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from tiler.boxes import Size
from tiler.errors import TileOptionInvalid

Mode = Literal["linear", "chess", "independent"]
SeamKind = Literal["none", "band", "half_tile", "half_tile_intersections"]
Seeds = Literal["same", "offset"]

TILE_STEP = 8
"""Tile sizes and processing sizes are multiples of it: one pixel of a latent is 8 x 8 pixels of the image."""
LEAST_TILE, MOST_TILE = 64, 2048
MOST_PADDING = 256
"""Or the tile's own size, if that is more."""
BAND_FEATHER = 8
"""Width of a band's ramps where none is chosen."""
SEED_VALUES = 2**64


@dataclass(frozen=True)
class SeamFix:
    """A second look at the seams, after all tiles: further steps that lie across them."""

    kind: SeamKind = "none"
    """``band``: strips along every seam. ``half_tile``: whole tiles, shifted by half. ``half_tile_intersections``: and one tile on each
    crossing of two seams."""
    width: int = 64
    """Width of a band in pixels, from the middle of one of its ramps to the middle of the other; half tiles do not use it."""
    feather: int | None = None
    """Width of the ramps at all sides in pixels; None: 8 for bands, half of the tile for half tiles."""
    padding: int = 16
    """As `TileOptions.padding`."""
    denoise: float | None = None
    """Only carried along, for whoever samples; None: as the tiles."""


@dataclass(frozen=True)
class TileOptions:
    """How a canvas is tiled; a plan depends on this and on the canvas' size alone."""

    tile_width: int = 512
    """64 to 2048 pixels; rounded to a multiple of 8."""
    tile_height: int = 512
    """As `tile_width`."""
    padding: int = 32
    """Pixels round a tile that the model sees and that are cut off again."""
    feather: int = 8
    """Full width in pixels of the ramp between two tiles, its middle on the seam (``mask_blur``); odd ones are made even."""
    uniform: bool = True
    """All tiles are read at one size, moved inwards at the edges of the canvas (``force_uniform_tiles``)."""
    mode: Mode = "linear"
    """``linear``: row by row, each tile sees the refined ones before it. ``chess``: the same in four colours, so that many tiles run at
    once. ``independent``: each tile sees the image as it was, so that all run at once."""
    seam_fix: SeamFix = field(default_factory=SeamFix)
    """Steps after the tiles."""
    seeds: Seeds = "same"
    """``offset``: each step adds its index to the seed."""

    @property
    def tile(self) -> Size:
        """Tile size as it is used."""
        return Size(_rounded(self.tile_width), _rounded(self.tile_height))


def _rounded(pixels: int) -> int:
    """To the nearest multiple of 8, halves up."""
    return (pixels + TILE_STEP // 2) // TILE_STEP * TILE_STEP


def even(pixels: int) -> int:
    """The ramp's middle lies on a seam, between two pixels, so its width is even."""
    return pixels + pixels % 2


def seam_feather(options: TileOptions) -> Size:
    """Width of the ramps of the seam steps along x and y, in pixels."""
    chosen = options.seam_fix.feather
    if chosen is None and options.seam_fix.kind != "band":
        return Size(options.tile.width // 2, options.tile.height // 2)
    width = BAND_FEATHER if chosen is None else even(chosen)
    return Size(width, width)


def step_seed(options: TileOptions, seed: int, index: int) -> int:
    """The seed of one step, 0 to 2^64 - 1; ``offset`` goes on at 0 after the last."""
    return seed if options.seeds == "same" else (seed + index) % SEED_VALUES


def check_options(options: TileOptions) -> None:
    """
    Raises:
        TileOptionInvalid: one of them cannot work, with its range.
    """
    _one_of("mode", options.mode, get_args(Mode))
    _one_of("seeds", options.seeds, get_args(Seeds))
    _one_of("seam_fix.kind", options.seam_fix.kind, get_args(SeamKind))
    for axis, given in (("tile_width", options.tile_width), ("tile_height", options.tile_height)):
        # The limits count after rounding: 60 becomes 64.
        _within(axis, given, LEAST_TILE - TILE_STEP // 2, MOST_TILE + TILE_STEP // 2 - 1, shown=(LEAST_TILE, MOST_TILE))
    narrow = min(options.tile)
    most_padding = max(MOST_PADDING, narrow)
    _within("padding", options.padding, 0, most_padding)
    _within("feather", options.feather, 0, narrow)
    if options.seam_fix.kind != "none":
        _within("seam_fix.padding", options.seam_fix.padding, 0, most_padding)
        _check_seam_fix(options.seam_fix, narrow)


def _check_seam_fix(seam: SeamFix, narrow: int) -> None:
    """``narrow`` is the shorter side of a tile; two bands, or two half tiles, side by side must not meet."""
    if seam.denoise is not None and not 0 <= seam.denoise <= 1:
        raise TileOptionInvalid(option="seam_fix.denoise", value=repr(seam.denoise), expected="a number from 0 to 1")
    if seam.kind != "band":
        _within("seam_fix.feather", 0 if seam.feather is None else seam.feather, 0, narrow // 2)
        return
    _within("seam_fix.width", seam.width, TILE_STEP, narrow)
    feather = BAND_FEATHER if seam.feather is None else seam.feather
    _within("seam_fix.feather", feather, 0, min(seam.width, narrow - seam.width) // 2 * 2)


def _within(option: str, value: int, least: int, most: int, *, shown: tuple[int, int] | None = None) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not least <= value <= most:
        first, last = shown or (least, most)
        raise TileOptionInvalid(option=option, value=repr(value), expected=f"a whole number from {first} to {last}")


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise TileOptionInvalid(option=option, value=repr(value), expected=f"one of {', '.join(known)}")
