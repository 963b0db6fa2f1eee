"""File names out of a fuzzer: in records, in prompts and in what is saved; no file appears outside the folder that it is meant for."""
from __future__ import annotations

import ntpath
import posixpath
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distributed_comfy.collector.naming import PART_BYTES, FolderNames, safe_relative
from distributed_comfy.engine.builtin.file_nodes import LoadImage, next_name
from distributed_comfy.engine.folders import WorkFolders
from distributed_comfy.errors import FileNameUnsafe, OutputUnwritable
from distributed_comfy.messages import FileRef, ItemResult, dump
from distributed_comfy.transport.files import InputCache, check_name, fetch_file
from distributed_comfy.transport.memory_blobs import MemoryBlobStore

DOTS = ["..", ".", "", " ", ".. ", "...", "~", "%2e%2e", "．．"]
PARTS = st.sampled_from([*DOTS, "a", "b.png", "C:", "c:x", "con", "nul.txt", "\0", "\n", "\ud800", "\udcff", "x" * 300])
SLASHES = st.sampled_from(["/", "/", "/", "\\", "//", "\\\\?\\"])
NAMES = st.lists(PARTS | SLASHES | st.text(max_size=5), max_size=10).map("".join)
SHA256 = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"


def stays_inside(name: str) -> bool:
    """Below its folder by the rules of either kind of system; Windows itself refuses each name with a colon."""
    here = posixpath.normpath(posixpath.join("/top/in", name)).startswith("/top/in/")
    there = ntpath.normpath(ntpath.join("C:\\top\\in", name)).lower().startswith("c:\\top\\in\\")
    return here and (there or ":" in name)


@given(NAMES)
@example("\ud800.png")
@example("\udcff.png")
@example("0:")
def test_a_name_of_a_record_stays_inside_and_can_be_written_down_or_is_refused(name: str) -> None:
    try:
        path = check_name(name)
    except FileNameUnsafe as error:
        assert str(error).encode(errors="replace")
        return
    assert stays_inside(str(path)) and ".." not in path.parts and "\0" not in name
    dump(ItemResult(files=(FileRef(name, "image/png", SHA256, 7, "f#1"),)))


@given(NAMES)
@example("x" * 300 + "." + "ä" * 12)
def test_a_name_that_is_made_safe_stays_inside_and_is_safe_already(name: str) -> None:
    path = safe_relative(name)
    assert stays_inside(str(path)) and check_name(str(path)) == path
    assert all(len(part.encode()) <= PART_BYTES for part in path.parts)
    assert safe_relative(str(path)) == path


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("top")


def outside(top: Path) -> list[Path]:
    return [path for path in top.rglob("*") if not path.is_relative_to(top / "in")]


@given(NAMES)
@example("\ud800.png")
@example("x" * 300)
def test_a_fetched_file_is_inside_its_folder_or_nowhere(top: Path, name: str) -> None:
    store = MemoryBlobStore()
    store.put("f", [b"content"])
    shutil.rmtree(top / "in", ignore_errors=True)
    try:
        path = fetch_file(store, FileRef(name, "image/png", SHA256, 7, "f#1"), top / "in")
    except (FileNameUnsafe, OutputUnwritable):
        assert not [path for path in top.rglob("*") if path.is_file()]
    else:
        assert path.resolve().is_relative_to(top.resolve() / "in") and path.read_bytes() == b"content"
    assert not outside(top)


@given(NAMES)
def test_a_file_that_is_saved_for_the_user_is_inside_the_folder(top: Path, name: str) -> None:
    shutil.rmtree(top, ignore_errors=True)
    source = top / "in" / "source.part"
    source.parent.mkdir(parents=True)
    source.write_bytes(b"x")
    path = FolderNames(top / "in").put(source, safe_relative(name))
    assert path.resolve().is_relative_to(top.resolve() / "in") and not outside(top)


@given(NAMES)
def test_a_cached_input_lies_in_the_cache(name: str) -> None:
    path = InputCache(Path("/cache")).path_of(FileRef(name, "image/png", SHA256, 7, "f#1"))
    assert path.parent == Path("/cache") / SHA256[:2] and path.name.startswith(SHA256)


@given(NAMES)
@example("a\0b")
@example("\ud800")
@example("x" * 300)
def test_a_prompt_loads_and_saves_inside_its_workers_folders(top: Path, name: str) -> None:
    folders = WorkFolders(top / "work")
    for folder in (folders.input, folders.output, folders.temp):
        folder.mkdir(parents=True, exist_ok=True)
    loader: Any = type("Loader", (LoadImage,), {"bench": SimpleNamespace(folders=folders)})
    assert loader.VALIDATE_INPUTS(name) is not True, "there is no file, so none was found elsewhere"
    try:
        stem, subfolder, _ = next_name(folders.output, name, (8, 8))
        path = (folders.output / subfolder / f"{stem}_00001_.png").resolve()
    except (ValueError, OSError):  # the node's own exception, told with the node
        return
    assert path.is_relative_to(folders.output.resolve())
