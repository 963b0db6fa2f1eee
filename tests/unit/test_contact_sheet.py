"""The contact sheet: every image at its place, whatever there is to show."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distributed_comfy.collector.contact_sheet import (
    BACKGROUND,
    MAX_THUMBNAILS,
    WORKER_COLOURS,
    SheetEntry,
    SheetHeader,
    draw_contact_sheet,
    save_contact_sheet,
)
from distributed_comfy.errors import OutputUnwritable

HEADER = SheetHeader("Distributed Comfy demo", ("8 images", "12.4 s on 2 workers"), "Made by the built-in engine.")
FLAT = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200), (200, 30, 200), (120, 60, 20), (20, 120, 60)]


def entries(folder: Path, count: int, *, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> list[SheetEntry]:
    """Images of one colour each, by two workers in turns."""
    made = []
    for index in range(count):
        path = folder / f"{index}.png"
        Image.new("RGB", size, FLAT[index % len(FLAT)]).convert(mode).save(path)
        made.append(SheetEntry(path, index, str(1125899906842 + index), f"pc1-cpu-{index % 2}", 1.5))
    return made


def has_colour(sheet: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(np.asarray(sheet).astype(int) - colour).max(axis=2) <= 1).any())


def test_every_image_and_a_dot_for_each_worker_are_on_the_sheet(tmp_path: Path) -> None:
    sheet = draw_contact_sheet(entries(tmp_path, 8), HEADER)
    assert all(has_colour(sheet, colour) for colour in (*FLAT, *WORKER_COLOURS[:2], BACKGROUND))
    assert not has_colour(sheet, WORKER_COLOURS[2])


def test_images_stand_in_reading_order(tmp_path: Path) -> None:
    pixels = np.asarray(draw_contact_sheet(entries(tmp_path, 8), HEADER)).astype(int)
    places = [np.argwhere(np.abs(pixels - colour).max(axis=2) <= 1).mean(axis=0) for colour in FLAT]
    assert [round(row) for row, _ in places[:4]] == [round(places[0][0])] * 4
    assert places[4][0] > places[3][0] + 100
    assert sorted(column for _, column in places[:4]) == [column for _, column in places[:4]]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 13, 30, 100])
def test_any_number_of_images_gives_a_sheet_of_sensible_size(tmp_path: Path, count: int) -> None:
    width, height = draw_contact_sheet(entries(tmp_path, count), HEADER).size
    assert 900 <= width <= 2600
    assert height <= 1.6 * width


def test_more_images_than_fit_are_counted_not_drawn(tmp_path: Path) -> None:
    few = entries(tmp_path, 8)
    many = draw_contact_sheet([few[index % 8] for index in range(MAX_THUMBNAILS + 50)], HEADER)
    full = draw_contact_sheet([few[index % 8] for index in range(MAX_THUMBNAILS)], HEADER)
    assert many.size == full.size
    assert many.tobytes() != full.tobytes(), "it says how many are not shown"


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_every_kind_of_png_can_be_shown(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    (Image.new("L", (32, 16), 200) if mode == "I;16" else Image.new("RGB", (32, 16), (200, 200, 200))).convert(mode).save(path)
    draw_contact_sheet([SheetEntry(path, 0)], HEADER)


@pytest.mark.parametrize("size", [(1, 1), (2000, 10), (10, 2000)])
def test_odd_proportions_are_shown_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    assert has_colour(draw_contact_sheet(entries(tmp_path, 1, size=size), HEADER), FLAT[0])


def test_long_names_and_seeds_are_cut_to_their_card(tmp_path: Path) -> None:
    few = entries(tmp_path, 40)
    name = "a-very-long-worker-name-" * 4
    long = [SheetEntry(entry.path, 10_000 + entry.item, str(2**64 - 1), f"{name}{entry.item}", 86_400.0) for entry in few]
    header = SheetHeader("title " * 60, ("fact",) * 60, "note " * 90)
    assert draw_contact_sheet(long, header).size == draw_contact_sheet(few, HEADER).size


def test_the_sheet_is_saved_as_png_and_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "contact_sheet.png"
    for count in (2, 8):
        save_contact_sheet(entries(tmp_path, count), HEADER, path)
    with Image.open(path) as opened:
        assert (opened.format, opened.mode) == ("PNG", "RGB")
        assert opened.size == draw_contact_sheet(entries(tmp_path, 8), HEADER).size


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputUnwritable):
        save_contact_sheet(entries(tmp_path, 1), HEADER, tmp_path / "file" / "sheet.png")
