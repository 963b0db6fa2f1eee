"""The pictures of the seeded generator: a plane is stirred step by step, then coloured and lit.

Each step turns the plane about a few points and shears it with a wave, as a comb stirs ink on water; a picture is a pattern seen
through all these folds.  Every number that varies comes from the seed.  Only additions, multiplications, divisions and square roots
of single elements are used (IEEE rounds them the same way in every vector width), so the bits do not depend on the number of threads.
"""
from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from distributed_comfy.engine.builtin.styles import STYLES

SUPERSAMPLING = 2
"""Each pixel is the mean of this many squared."""

PREVIEW_SIDE_PX = 192
_LUT_SIZE = 2048
_LIGHT = (-0.5, -0.6, 0.62)

_PALETTES = (
    ("#0b132b", "#1c2541", "#3a506b", "#5bc0be", "#f7f7f2", "#ffb997", "#f67e7d"),
    ("#03071e", "#370617", "#6a040f", "#d00000", "#e85d04", "#faa307", "#ffecb5"),
    ("#10002b", "#3c096c", "#7b2cbf", "#c77dff", "#ffd6ff", "#ffb3c6", "#fb6f92"),
    ("#081c15", "#1b4332", "#2d6a4f", "#52b788", "#d8f3dc", "#fefae0", "#dda15e"),
    ("#001219", "#005f73", "#0a9396", "#94d2bd", "#e9d8a6", "#ee9b00", "#ae2012"),
    ("#0d1b2a", "#1b263b", "#415a77", "#a9bcd0", "#f4f1de", "#e07a5f", "#81312f"),
    ("#2b0a1d", "#6b0f3a", "#b5174b", "#ff5d73", "#ffc9b5", "#f7e7ce", "#3f8efc"),
    ("#06141b", "#11324d", "#1f6f8b", "#4cc9f0", "#f1faee", "#ffd166", "#ef8354"),
)


@dataclass(frozen=True)
class Vortex:
    """One turn of the plane: half a radian or so at its centre, fading with distance."""

    x: float
    y: float
    turn: float
    """Radians at the centre."""
    radius: float
    """Where the turn has faded to a quarter; 1 is half the picture's short side."""


@dataclass(frozen=True)
class Shear:
    """A wave along one axis that shifts the other."""

    vertical: bool
    frequency: float
    phase: float
    amplitude: float


@dataclass(frozen=True)
class Plane:
    """Coordinates of every sample, [H, W] float32 each; 1 is half the picture's short side."""

    x: torch.Tensor
    y: torch.Tensor
    short_px: int
    """Short side in samples."""


@dataclass(frozen=True)
class Subject:
    """What decides a picture, to the bit."""

    seed: int
    """0 .. 2^64-1."""
    position: int
    """Index in the batch; each gives a picture of its own."""
    width: int
    """Pixels, as `height`."""
    height: int
    style: str = "auto"
    """One of `STYLES`, or ``auto``."""


class Picture:
    """One picture, stirred by `steps` and coloured by `render` (at any time, for previews too)."""

    def __init__(self, subject: Subject, *, device: str) -> None:
        """Args:
        subject: what to show.
        device: where torch computes.
        """
        # The seed as text, because text is hashed: near seeds give far pictures.
        self._random = random.Random(f"{subject.seed}/{subject.position}")
        # Neighbouring seeds are seen side by side, so these two walk through their lists instead of being drawn.
        number = subject.seed + 5 * subject.position
        self._palette = _PALETTES[number % len(_PALETTES)]
        self.style = STYLES[(number + number // len(_PALETTES)) % len(STYLES)] if subject.style == "auto" else subject.style
        short = min(subject.width, subject.height)
        self._aspect = (subject.width / short, subject.height / short)
        self._plane = _plane(subject.width * SUPERSAMPLING, subject.height * SUPERSAMPLING, device)
        self._pattern = tuple(self._random.random() for _ in range(8))
        self._colours = _colour_table(self._palette, reverse=self._pattern[7] < 0.5).to(device)
        if self.style == "rosette":
            self._plane = _folded(self._plane, petals=self._random.choice((5, 6, 7, 8, 9, 10, 12)))

    def steps(self, count: int) -> Iterator[int]:
        """Stir the plane ``count`` times; gives the number of each step after it is done, from 1."""
        for step in range(count):
            for vortex in self._vortices(step):
                self._plane = _turned(self._plane, vortex)
            self._plane = _sheared(self._plane, self._shear(step))
            yield step + 1

    def render(self) -> torch.Tensor:
        """The picture: [H, W, 3] float32 in [0, 1]."""
        return _mean_of_squares(self._coloured(self._plane), SUPERSAMPLING)

    def preview(self) -> torch.Tensor:
        """A small picture of the work so far: [h, w, 3] float32 in [0, 1], its short side at most twice `PREVIEW_SIDE_PX`."""
        stride = max(1, self._plane.short_px // PREVIEW_SIDE_PX)
        plane = self._plane
        return self._coloured(Plane(plane.x[::stride, ::stride], plane.y[::stride, ::stride], -(-plane.short_px // stride)))

    def _vortices(self, step: int) -> list[Vortex]:
        draw, calm = self._random.uniform, 0.93**step
        return [
            Vortex(
                x=draw(-1.2, 1.2) * self._aspect[0],
                y=draw(-1.2, 1.2) * self._aspect[1],
                turn=draw(0.5, 1.4) * self._random.choice((-1, 1)) * (0.35 + 0.65 * 0.95**step),
                radius=draw(0.28, 0.77) * calm + 0.08,
            )
            for _ in range(2)
        ]

    def _shear(self, step: int) -> Shear:
        frequency = self._random.uniform(0.3, 1.1) * (1 + step * 0.06)
        return Shear(step % 2 == 0, frequency, self._random.random(), amplitude=0.10 / (1 + step * 0.12))

    def _coloured(self, plane: Plane) -> torch.Tensor:
        """Colours of each sample, lit from above left: [H, W, 3] in [0, 1], ready for the screen."""
        tone, relief = _PATTERNS[self.style](plane, self._pattern)
        shade, shine = _lit(relief, plane.short_px)
        position = ((tone - torch.floor(tone)) * _LUT_SIZE).long().clamp_(0, _LUT_SIZE - 1)
        colours = self._colours[position]
        colours = colours * (0.35 + 0.95 * shade)[..., None] + 0.35 * shine[..., None]
        return torch.sqrt(colours.clamp_(0, 1))  # the table is linear light; a screen wants its root


# -- stirring -----------------------------------------------------------------------------------------------------------
def _plane(width: int, height: int, device: str) -> Plane:
    short = min(width, height)
    x = (torch.arange(width, dtype=torch.float32, device=device) + (0.5 - width / 2)) * (2 / short)
    y = (torch.arange(height, dtype=torch.float32, device=device) + (0.5 - height / 2)) * (2 / short)
    return Plane(x.expand(height, width).clone(), y[:, None].expand(height, width).clone(), short)


def _folded(plane: Plane, *, petals: int) -> Plane:
    """The plane folded like paper into one wedge, which makes everything after it symmetric."""
    x, y = plane.x, plane.y.abs()
    for lines in (4, 2, 1):
        normal_x, normal_y = -math.sin(math.pi / petals * lines), math.cos(math.pi / petals * lines)
        beyond = (x * normal_x + y * normal_y).clamp_(min=0) * 2
        x, y = x - beyond * normal_x, (y - beyond * normal_y).abs()
    return Plane(x - 0.15, y, plane.short_px)


def _turned(plane: Plane, vortex: Vortex) -> Plane:
    """Rotation by an angle that falls with the distance, from the tangent of its half: no sine is needed."""
    dx, dy = plane.x - vortex.x, plane.y - vortex.y
    fading = (dx * dx + dy * dy) * (1 / vortex.radius**2) + 1
    half = (0.5 * vortex.turn) / (fading * fading)
    square = half * half
    whole = 1 / (square + 1)
    cosine, sine = (1 - square) * whole, half * whole * 2
    return Plane(dx * cosine - dy * sine + vortex.x, dx * sine + dy * cosine + vortex.y, plane.short_px)


def _sheared(plane: Plane, shear: Shear) -> Plane:
    if shear.vertical:
        return Plane(plane.x, plane.y + shear.amplitude * _wave(plane.x * shear.frequency + shear.phase), plane.short_px)
    return Plane(plane.x + shear.amplitude * _wave(plane.y * shear.frequency + shear.phase), plane.y, plane.short_px)


def _wave(x: torch.Tensor) -> torch.Tensor:
    """A sine of period 1, made of parabolas (Bhaskara's way, within 0.2 %)."""
    twice = x * 2
    whole = torch.floor(twice)
    part = twice - whole
    arch = part * (1 - part) * 4
    arch = arch * (arch * 0.225 + 0.775)
    odd = whole - torch.floor(whole * 0.5) * 2
    return arch * (1 - odd * 2)


# -- patterns: [H, W] tone (its fraction is a place in the palette) and relief ----------------------------------------------
def _ink(plane: Plane, pattern: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    tone = plane.x * (0.5 + 0.4 * pattern[0]) + 0.3 * _wave(plane.y * (0.5 + 0.7 * pattern[1]))
    tone = tone * (0.9 + 1.1 * pattern[2])
    tone = tone + 0.18 * _wave(tone * 3 + plane.y * 2)
    return tone, 0.5 * _wave(tone * 2)


def _silk(plane: Plane, pattern: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = plane.x, plane.y
    fold = 0.5 * _wave(x * 0.8 + 0.35 * _wave(y * 0.9)) + 0.5 * _wave(y * 0.7 + 0.3 * _wave(x * 1.1))
    return fold * (0.5 + 0.25 * pattern[0]) + x * 0.12 + pattern[1], fold * 2.2 + 0.15 * _wave(x * 9 + y * 3)


def _agate(plane: Plane, pattern: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = plane.x, plane.y
    tone: torch.Tensor | None = None
    for centre in range(3):
        dx, dy = x - (2 * pattern[2 * centre] - 1), y - (2 * pattern[2 * centre + 1] - 1)
        ring = torch.sqrt(dx * dx + dy * dy) * (0.7 + 0.3 * centre)
        tone = ring if tone is None else torch.minimum(tone, ring)
    assert tone is not None
    tone = tone * (1.4 + 0.8 * pattern[6])
    tone = tone + 0.045 * _wave(tone * 5) + 0.02 * _wave(x * 5 + _wave(y * 4))
    return tone, 0.3 * _wave(tone * 4)


def _rosette(plane: Plane, pattern: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = plane.x, plane.y
    tone = torch.sqrt(x * x + y * y) * (0.5 + 0.4 * pattern[0]) + 0.25 * _wave(x * 0.9 + 0.4 * _wave(y * 0.8))
    return tone + pattern[1], 0.4 * _wave(tone * 3) + 0.05 * _wave(x * 8)


_PATTERNS = {"ink": _ink, "silk": _silk, "agate": _agate, "rosette": _rosette}


# -- colour and light ---------------------------------------------------------------------------------------------------
def _lit(relief: torch.Tensor, short_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Shade and shine of a surface of this height, [H, W] each in [0, 1]."""
    slope_x, slope_y = torch.zeros_like(relief), torch.zeros_like(relief)
    slope_x[:, 1:-1] = (relief[:, 2:] - relief[:, :-2]) * (short_px * 0.004)
    slope_y[1:-1] = (relief[2:] - relief[:-2]) * (short_px * 0.004)
    length = torch.sqrt(slope_x * slope_x + slope_y * slope_y + 1)
    shade = ((_LIGHT[2] - slope_x * _LIGHT[0] - slope_y * _LIGHT[1]) / length).clamp_(0, 1)
    shine = shade
    for _ in range(5):  # the 32nd power: a small, hard highlight
        shine = shine * shine
    return shade, shine


def _colour_table(palette: tuple[str, ...], *, reverse: bool) -> torch.Tensor:
    """The palette as a closed ring of `_LUT_SIZE` colours in linear light: [n, 3]."""
    colours = [[(int(text[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)] for text in palette]
    if reverse:
        colours.reverse()
    ring = colours + colours[-2:0:-1]
    table = []
    for entry in range(_LUT_SIZE):
        place, part = divmod(entry / _LUT_SIZE * len(ring), 1)
        part = part * part * (3 - 2 * part)
        before, after = ring[int(place)], ring[(int(place) + 1) % len(ring)]
        table.append([a * (1 - part) + b * part for a, b in zip(before, after, strict=True)])
    return torch.tensor(table, dtype=torch.float32)


def _mean_of_squares(samples: torch.Tensor, side: int) -> torch.Tensor:
    """Each ``side`` x ``side`` square of [H, W, 3] as its mean; added in a fixed order."""
    total = samples[0::side, 0::side].clone()
    for row in range(side):
        for column in range(side):
            if row or column:
                total += samples[row::side, column::side]
    return total * (1 / side**2)
