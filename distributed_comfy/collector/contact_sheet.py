"""The contact sheet: every image of a job as a thumbnail, with its item, seed, worker and seconds, drawn with Pillow alone."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from distributed_comfy.collector.naming import writing
from distributed_comfy.transport.pictures import read_picture

BACKGROUND = (20, 21, 24)
CARD = (31, 33, 37)
TEXT = (236, 237, 240)
MUTED = (150, 154, 162)
WORKER_COLOURS = (
    (96, 165, 250),
    (52, 211, 153),
    (251, 191, 36),
    (244, 114, 182),
    (167, 139, 250),
    (248, 113, 113),
    (45, 212, 191),
    (163, 230, 53),
)
"""One per worker, in order of first appearance; they repeat after eight."""
MARGIN_PX = 48
GAP_PX = 22
CARD_PADDING_PX = 12
CAPTION_PX = 64
MIN_WIDTH_PX = 900
MAX_THUMBNAILS = 100
"""More images than this are counted in the header, not drawn."""

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class SheetEntry:
    """One image of the sheet."""

    path: Path
    """An image file, see `read_picture`."""
    item: int
    """Item index, 0-based."""
    seed: str = ""
    worker: str = ""
    seconds: float = 0.0
    """Engine time of the item."""


@dataclass(frozen=True)
class SheetHeader:
    """What stands above the images."""

    title: str
    facts: tuple[str, ...] = ()
    """Short phrases such as ``8 images`` or ``12.4 s on 2 workers``, joined by dots on one line."""
    note: str = ""
    """A last line, such as which engine made the images."""


@dataclass(frozen=True)
class _Layout:
    columns: int
    rows: int
    thumb_w: int
    thumb_h: int
    header_px: int
    top_px: int

    @property
    def card(self) -> tuple[int, int]:
        return self.thumb_w + 2 * CARD_PADDING_PX, self.thumb_h + 2 * CARD_PADDING_PX + CAPTION_PX

    @property
    def size(self) -> tuple[int, int]:
        card_w, card_h = self.card
        width = 2 * MARGIN_PX + self.columns * card_w + (self.columns - 1) * GAP_PX
        return max(width, MIN_WIDTH_PX), self.top_px + self.rows * card_h + (self.rows - 1) * GAP_PX + MARGIN_PX

    def corner(self, position: int) -> tuple[int, int]:
        row, column = divmod(position, self.columns)
        card_w, card_h = self.card
        return MARGIN_PX + column * (card_w + GAP_PX), self.top_px + row * (card_h + GAP_PX)


def draw_contact_sheet(entries: Sequence[SheetEntry], header: SheetHeader) -> Image.Image:
    """The sheet as an RGB picture.

    Args:
        entries: in the order to show; the first `MAX_THUMBNAILS` are drawn.
        header: title, totals and note.
    """
    shown = list(entries[:MAX_THUMBNAILS])
    colours = _worker_colours(entries)
    layout = _layout(shown, bool(header.note))
    sheet = Image.new("RGB", layout.size, BACKGROUND)
    _draw_header(sheet, header, entries, colours)
    for position, entry in enumerate(shown):
        _draw_card(sheet, layout, layout.corner(position), entry, colours.get(entry.worker, MUTED))
    return sheet


def save_contact_sheet(entries: Sequence[SheetEntry], header: SheetHeader, path: Path) -> Path:
    """Draw the sheet and write it as PNG, replacing the file at ``path``.

    Raises:
        OutputUnwritable: the folder is full or may not be written.
    """
    sheet = draw_contact_sheet(entries, header)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, format="PNG", compress_level=4)
    return path


def _worker_colours(entries: Sequence[SheetEntry]) -> dict[str, Colour]:
    workers = dict.fromkeys(entry.worker for entry in entries if entry.worker)
    return {worker: WORKER_COLOURS[position % len(WORKER_COLOURS)] for position, worker in enumerate(workers)}


def _layout(shown: Sequence[SheetEntry], has_note: bool) -> _Layout:
    """A grid somewhat wider than high with few empty places; thumbnails take the first image's proportions."""
    columns = _columns(len(shown))
    thumb_w = {1: 440, 2: 440, 3: 380, 4: 300}.get(columns, 232 if columns <= 7 else 192)
    thumb_h = thumb_w
    if shown:
        first = read_picture(shown[0].path)
        thumb_h = round(thumb_w * min(1.8, max(0.5, first.height / max(1, first.width))))
    header_px = 128 + (28 if has_note else 0)
    return _Layout(columns, math.ceil(len(shown) / columns), thumb_w, thumb_h, header_px, MARGIN_PX + header_px)


def _columns(count: int) -> int:
    if count <= 4:
        return max(1, count)
    wanted = min(9, max(4, math.ceil(math.sqrt(count * 1.4))))
    return min((wanted, wanted - 1, wanted + 1), key=lambda columns: -count % columns + (99 if columns < 4 else 0))


@lru_cache(maxsize=8)
def _font(size_px: int) -> Font:
    return ImageFont.load_default(size_px)


def _draw_header(sheet: Image.Image, header: SheetHeader, entries: Sequence[SheetEntry], colours: dict[str, Colour]) -> None:
    draw = ImageDraw.Draw(sheet)
    width = sheet.width - 2 * MARGIN_PX
    draw.text((MARGIN_PX, MARGIN_PX - 8), _fitted(draw, header.title, _font(36), width), font=_font(36), fill=TEXT)
    facts = [*header.facts, *([f"first {MAX_THUMBNAILS} of {len(entries)} shown"] if len(entries) > MAX_THUMBNAILS else [])]
    line = _fitted(draw, "   ·   ".join(facts), _font(19), width)
    draw.text((MARGIN_PX, MARGIN_PX + 42), line, font=_font(19), fill=MUTED)
    if header.note:
        draw.text((MARGIN_PX, MARGIN_PX + 71), _fitted(draw, header.note, _font(16), width), font=_font(16), fill=MUTED)
    _draw_legend(sheet, (MARGIN_PX, MARGIN_PX + (106 if header.note else 80)), entries, colours)


def _draw_legend(sheet: Image.Image, corner: tuple[int, int], entries: Sequence[SheetEntry], colours: dict[str, Colour]) -> None:
    """A dot, name and count per worker on one line; those that do not fit become a number."""
    draw, font = ImageDraw.Draw(sheet), _font(17)
    items = {worker: len({entry.item for entry in entries if entry.worker == worker}) for worker in colours}
    x, y = corner
    for position, (worker, colour) in enumerate(colours.items()):
        label = f"{_shortened(worker, 28)}  {items[worker]}"
        if x + draw.textlength(label, font=font) + 80 > sheet.width - MARGIN_PX:
            draw.text((x, y), f"+ {len(colours) - position} more", font=font, fill=MUTED)
            return
        _dot(sheet, (x + 6, y + 10), 6, colour)
        draw.text((x + 20, y), label, font=font, fill=TEXT)
        x += 20 + round(draw.textlength(label, font=font)) + 30


def _draw_card(sheet: Image.Image, layout: _Layout, corner: tuple[int, int], entry: SheetEntry, colour: Colour) -> None:
    left, top = corner
    width, height = layout.card
    _paste_rounded(sheet, Image.new("RGB", (width, height), CARD), (left, top), 14)
    thumb = _thumbnail(entry.path, (layout.thumb_w, layout.thumb_h))
    _paste_rounded(sheet, thumb, (left + CARD_PADDING_PX, top + CARD_PADDING_PX), 9)
    _draw_caption(sheet, (left + CARD_PADDING_PX + 2, top + layout.thumb_h + 2 * CARD_PADDING_PX), layout.thumb_w - 4, entry, colour)


def _draw_caption(sheet: Image.Image, corner: tuple[int, int], width: int, entry: SheetEntry, colour: Colour) -> None:
    """Two lines: item and seed; worker and seconds.  The right-hand parts keep their width, the left-hand ones are cut."""
    draw, (left, top) = ImageDraw.Draw(sheet), corner
    big, small = _font(17), _font(15)
    number = f"#{entry.item}"
    draw.text((left, top), number, font=big, fill=TEXT)
    room = width - draw.textlength(number, font=big) - 12
    seed = _seed_text(draw, entry.seed, small, room)
    draw.text((left + width, top + 18), seed, font=small, fill=MUTED, anchor="rs")
    seconds = f"{entry.seconds:.2f} s" if entry.seconds < 100 else f"{entry.seconds:.0f} s"
    draw.text((left + width, top + 45), seconds, font=small, fill=MUTED, anchor="rs")
    _dot(sheet, (left + 6, top + 40), 5, colour)
    name = _fitted(draw, entry.worker or "unknown worker", small, width - 24 - draw.textlength(seconds, font=small) - 12)
    draw.text((left + 18, top + 45), name, font=small, fill=TEXT, anchor="ls")


def _thumbnail(path: Path, size: tuple[int, int]) -> Image.Image:
    """The whole image, scaled to fit, on a dark ground; transparency shows that ground."""
    ground = Image.new("RGB", size, (12, 13, 15))
    scaled = read_picture(path).convert("RGBA")
    scale = min(size[0] / max(1, scaled.width), size[1] / max(1, scaled.height))
    scaled = scaled.resize((max(1, round(scaled.width * scale)), max(1, round(scaled.height * scale))), Image.Resampling.LANCZOS)
    ground.paste(scaled, ((size[0] - scaled.width) // 2, (size[1] - scaled.height) // 2), scaled)
    return ground


def _paste_rounded(sheet: Image.Image, picture: Image.Image, corner: tuple[int, int], radius: int) -> None:
    sheet.paste(picture, corner, _rounded_mask(picture.size, radius))


@lru_cache(maxsize=8)
def _rounded_mask(size: tuple[int, int], radius: int) -> Image.Image:
    scale = 4  # drawn larger and scaled down, because Pillow draws curves without smoothing
    mask = Image.new("L", (size[0] * scale, size[1] * scale), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), radius * scale, fill=255)
    return mask.resize(size, Image.Resampling.LANCZOS)


def _dot(sheet: Image.Image, centre: tuple[int, int], radius: int, colour: Colour) -> None:
    picture = Image.new("RGB", (2 * radius, 2 * radius), colour)
    _paste_rounded(sheet, picture, (centre[0] - radius, centre[1] - radius), radius)


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: Font, width_px: float) -> str:
    """``text``, cut at its end with an ellipsis until it is no wider than ``width_px``."""
    if draw.textlength(text, font=font) <= width_px:
        return text
    while text and draw.textlength(text + "…", font=font) > width_px:
        text = text[:-1]
    return text + "…"


def _seed_text(draw: ImageDraw.ImageDraw, seed: str, font: Font, width_px: float) -> str:
    """The seed as wide as there is room; neighbours differ in their last digits, so it is cut at its start."""
    if not seed or draw.textlength(f"seed {seed}", font=font) <= width_px:
        return f"seed {seed}" if seed else ""
    cuts = (seed, *(f"…{seed[start:]}" for start in range(1, len(seed))))
    return next((text for text in cuts if draw.textlength(text, font=font) <= width_px), "")


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
