"""Bytes that a worker sends as a picture: nothing of them costs more than the picture."""
from __future__ import annotations

import io
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from distributed_comfy.collector.contact_sheet import SheetEntry, SheetHeader, draw_contact_sheet
from distributed_comfy.comfyui.previews import preview_for_page
from distributed_comfy.errors import PictureUnreadable
from distributed_comfy.transport.pictures import FORMATS, read_picture

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def png_of(side: int, content: bytes = b"\0" * 100) -> bytes:
    """A PNG that says it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def picture(kind: str = "PNG") -> bytes:
    written = io.BytesIO()
    Image.radial_gradient("L").resize((24, 16)).convert("RGB").save(written, kind)
    return written.getvalue()


HOSTILE = {
    "none": b"no picture",
    "nothing": b"",
    "postscript": EPS,
    "30000 x 30000": png_of(30_000),
    "12000 x 12000": png_of(12_000),
    "truncated": picture()[:-30],
    "without its pixels": picture()[:40],
    "a broken chunk": picture().replace(b"IDAT", b"IDA\0"),
    "truncated JPEG": picture("JPEG")[:200],
    "a list of pixels": b"P6 10000000 10000000 255\n",
}


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Pillow would start, on a host that has Ghostscript."""
    started: list[Any] = []

    def start(command: Any, *_: Any, **__: Any) -> None:
        started.append(command)
        raise OSError("not in this test")

    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", lambda: True)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    monkeypatch.setattr(subprocess, "check_call", start)
    return started


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_preview_that_is_none_is_left_out(content: bytes, programs: list[Any]) -> None:
    assert preview_for_page(content, 512) is None
    assert not programs


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_result_that_is_no_picture_is_refused_by_name(content: bytes, programs: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "result.png"
    path.write_bytes(content)
    for source in (content, path):
        with pytest.raises(PictureUnreadable):
            read_picture(source)
    with pytest.raises(PictureUnreadable):
        draw_contact_sheet([SheetEntry(path, 0)], SheetHeader("title"))
    assert not programs


@pytest.mark.parametrize("kind", FORMATS)
def test_the_usual_formats_are_read_whole(kind: str) -> None:
    content = picture(kind)
    read = read_picture(content)
    assert read.size == (24, 16) and read.convert("RGB").tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def test_a_preview_is_jpeg_or_png_and_no_larger_than_a_page_shows() -> None:
    for kind in ("JPEG", "PNG"):
        shown = preview_for_page(picture(kind), 512)
        assert shown is not None and (shown[0], shown[1].size, shown[2]) == ("JPEG", (24, 16), 512)
    assert preview_for_page(picture("GIF"), 512) is None
    large = io.BytesIO()
    Image.new("L", (4096, 4097)).save(large, "PNG")
    assert preview_for_page(large.getvalue(), 512) is None


@given(at=st.integers(0, 2**12), byte=st.integers(0, 255), cut=st.integers(0, 64), kind=st.sampled_from(("JPEG", "PNG")))
def test_whatever_byte_is_wrong_a_preview_raises_nothing(at: int, byte: int, cut: int, kind: str) -> None:
    content = bytearray(picture(kind))
    content[at % len(content)] = byte
    preview_for_page(bytes(content[: len(content) - cut]), 512)
