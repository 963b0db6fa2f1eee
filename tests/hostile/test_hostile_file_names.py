"""File names that try to leave their folder, on any system; nothing is written for any of them."""
from __future__ import annotations

from pathlib import Path

import pytest

from distributed_comfy.errors import FileNameUnsafe
from distributed_comfy.messages import FileRef
from distributed_comfy.transport.files import FileSource, InputCache, fetch_file, store_file
from distributed_comfy.transport.memory_blobs import MemoryBlobStore

ESCAPES = {
    "empty": "",
    "the folder itself": ".",
    "the parent": "..",
    "a file in the parent": "../a.png",
    "the parent in the middle": "a/../../b.png",
    "the parent at the end": "a/..",
    "a harmless detour": "a/../b.png",
    "absolute": "/etc/passwd",
    "two slashes": "//host/share/a.png",
    "an empty part": "a//b.png",
    "a folder": "a/",
    "a NUL": "a.png\0.txt",
    "a backslash": "a\\b.png",
    "the parent with backslashes": "..\\..\\a.png",
    "absolute with a backslash": "\\windows\\a.png",
    "a UNC path": "\\\\host\\share\\a.png",
    "a drive": "C:/windows/a.png",
    "a drive with backslashes": "C:\\windows\\a.png",
    "relative to a drive": "C:a.png",
    "a small drive letter": "c:a.png",
    "a device path": "\\\\?\\C:\\a.png",
    "the parent with a space": ".. /a.png",
    "the parent with dots and spaces": ".. ./a.png",
    "three dots": ".../a.png",
    "a space": " /a.png",
}


@pytest.fixture
def store() -> MemoryBlobStore:
    store = MemoryBlobStore()
    store.put("f", [b"content"])
    return store


def ref(name: str, sha256: str = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73") -> FileRef:
    return FileRef(name=name, media_type="image/png", sha256=sha256, size_bytes=7, blob="f#1")


@pytest.mark.parametrize("case", ESCAPES)
def test_a_name_that_leaves_its_folder_is_refused_and_nothing_is_written(case: str, store: MemoryBlobStore, tmp_path: Path) -> None:
    with pytest.raises(FileNameUnsafe) as caught:
        fetch_file(store, ref(ESCAPES[case]), tmp_path / "out")
    assert caught.value.name == ESCAPES[case]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", [case for case in ESCAPES if case != "empty"])
def test_a_name_given_at_the_fetch_has_the_same_rules(case: str, store: MemoryBlobStore, tmp_path: Path) -> None:
    with pytest.raises(FileNameUnsafe):
        fetch_file(store, ref("good.png"), tmp_path / "out", name=ESCAPES[case])


@pytest.mark.parametrize("case", ESCAPES)
def test_such_a_name_is_not_even_shipped(case: str, store: MemoryBlobStore, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"content")
    with pytest.raises(FileNameUnsafe):
        store_file(store, FileSource(tmp_path / "a.png", ESCAPES[case]), blob_name="g", job_id="j", limit_bytes=100)


@pytest.mark.parametrize("name", ["a.png", "a b/c..d.png", ".hidden", "ä/ö.png", "a/..b", "..a/b", "12-30.png", "a.b/c.d/e"])
def test_an_ordinary_name_is_written(name: str, store: MemoryBlobStore, tmp_path: Path) -> None:
    path = fetch_file(store, ref(name), tmp_path)
    assert path == tmp_path / name
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("sha256", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "/" + "0" * 63])
def test_a_hash_that_is_none_is_no_path_into_the_cache(sha256: str, store: MemoryBlobStore, tmp_path: Path) -> None:
    with pytest.raises(FileNameUnsafe):
        InputCache(tmp_path / "cache").fetch(store, ref("a.png", sha256))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.png/../../x", "a.p/g", "a." + "x" * 50, "a.p\0g", "a.ä"])
def test_a_strange_ending_does_not_reach_the_caches_paths(name: str, tmp_path: Path) -> None:
    cache = InputCache(tmp_path)
    path = cache.path_of(ref(name))
    assert path.parent.parent == tmp_path
    assert path.name.startswith(ref(name).sha256)
    assert len(path.name) < 80
