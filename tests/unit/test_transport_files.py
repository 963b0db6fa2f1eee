"""Files by content: there and back, whole or not at all, and kept once per host."""
from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.errors import (
    BlobMissing,
    CacheUnwritable,
    FileDamaged,
    FileTooLarge,
    FileUnreadable,
    ItemInterrupted,
    OutputUnwritable,
)
from distributed_comfy.file_lock import FileLock
from distributed_comfy.messages import FileRef, InputFile, RunRequest
from distributed_comfy.transport import files
from distributed_comfy.transport.files import FileSource, InputCache, fetch_file, media_type, sha256_of, store_file
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tasks.inputs import bring_inputs

LIMIT_BYTES = 2**24
CONTENT = bytes(range(256)) * 9000  # more than two reads


@pytest.fixture
def store() -> MemoryBlobStore:
    return MemoryBlobStore(chunk_bytes=10_000)


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    path = tmp_path / "engine" / "out.png"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return FileSource(path, "sub folder/out_00001_.png", node_id="9")


def stored(store: MemoryBlobStore, source: FileSource) -> FileRef:
    return store_file(store, source, blob_name="job/claim/f0", job_id="job", limit_bytes=LIMIT_BYTES)


def test_a_file_arrives_whole_under_its_name(store: MemoryBlobStore, source: FileSource, tmp_path: Path) -> None:
    ref = stored(store, source)
    assert ref == FileRef(
        name="sub folder/out_00001_.png",
        media_type="image/png",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size_bytes=len(CONTENT),
        blob=store.blob_id("job/claim/f0", len(CONTENT)),
        folder="output",
        node_id="9",
    )
    path = fetch_file(store, ref, tmp_path / "home" / "out")
    assert path == tmp_path / "home" / "out" / "sub folder" / "out_00001_.png"
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == [path.name]
    store.drop_job("job")
    assert store.exists([ref.blob]) == [False]


def test_an_empty_file_travels_too(store: MemoryBlobStore, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    ref = stored(store, FileSource(tmp_path / "empty", "empty"))
    assert fetch_file(store, ref, tmp_path / "out").read_bytes() == b""


def test_a_file_that_was_there_is_replaced(store: MemoryBlobStore, source: FileSource, tmp_path: Path) -> None:
    ref = stored(store, source)
    (tmp_path / "a.png").write_bytes(b"old")
    assert fetch_file(store, ref, tmp_path, name="a.png").read_bytes() == CONTENT


def test_the_file_has_the_rights_of_any_new_file(store: MemoryBlobStore, source: FileSource, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    fetched = fetch_file(store, stored(store, source), tmp_path / "out")
    assert fetched.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "changes",
    [{"sha256": "0" * 64}, {"size_bytes": len(CONTENT) - 1}, {"size_bytes": len(CONTENT) + 1}, {"size_bytes": 0}],
    ids=["other hash", "shorter", "longer", "empty"],
)
def test_a_file_that_is_not_what_its_record_says_does_not_appear(
    store: MemoryBlobStore, source: FileSource, tmp_path: Path, changes: dict[str, Any]
) -> None:
    ref = stored(store, source)
    with pytest.raises(FileDamaged, match="its record says"):
        fetch_file(store, FileRef(**{**vars(ref), **changes}), tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_blob_that_is_gone_leaves_no_file(store: MemoryBlobStore, source: FileSource, tmp_path: Path) -> None:
    ref = stored(store, source)
    store.drop_job("job")
    with pytest.raises(BlobMissing):
        fetch_file(store, ref, tmp_path / "out", name="a")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(store: MemoryBlobStore, source: FileSource, tmp_path: Path) -> None:
    ref = stored(store, source)
    (tmp_path / "file").touch()
    with pytest.raises(OutputUnwritable, match="file") as caught:
        fetch_file(store, ref, tmp_path / "file")
    assert caught.value.path.startswith(str(tmp_path / "file"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_as_such(
    store: MemoryBlobStore, source: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = stored(store, source)
    real_open = Path.open
    full = Path("/dev/full")
    monkeypatch.setattr(Path, "open", lambda path, mode: real_open(full if path.suffix == ".part" else path, mode.replace("x", "w")))
    with pytest.raises(OutputUnwritable, match="No space left"):
        fetch_file(store, ref, tmp_path / "out")


def test_a_file_that_cannot_be_read_is_named(store: MemoryBlobStore, tmp_path: Path) -> None:
    with pytest.raises(FileUnreadable, match="gone"):
        stored(store, FileSource(tmp_path / "gone.png", "gone.png"))
    with pytest.raises(FileUnreadable, match="gone"):
        sha256_of(tmp_path / "gone.png")


@pytest.mark.parametrize("later", [b"", CONTENT[:-1], CONTENT + b"!"], ids=["emptied", "shortened", "grown"])
def test_a_file_that_changes_while_it_is_read_is_not_shipped(
    store: MemoryBlobStore, source: FileSource, monkeypatch: pytest.MonkeyPatch, later: bytes
) -> None:
    real_fstat = os.fstat

    def change_after_looking(descriptor: int) -> os.stat_result:
        found = real_fstat(descriptor)
        source.path.write_bytes(later)
        return found

    monkeypatch.setattr(os, "fstat", change_after_looking)
    with pytest.raises(FileUnreadable, match="changed"):
        stored(store, source)


def test_a_file_over_the_limit_is_refused(store: MemoryBlobStore, source: FileSource) -> None:
    with pytest.raises(FileTooLarge, match="over the limit of 10;"):
        store_file(store, source, blob_name="a", job_id="j", limit_bytes=10)


def test_the_hash_can_be_had_before_the_upload(store: MemoryBlobStore, source: FileSource) -> None:
    assert sha256_of(source.path) == stored(store, source).sha256


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "image/png"),
        ("a.JPG", "image/jpeg"),
        ("a.webp", "image/webp"),
        ("a/b.flac", "audio/flac"),
        ("a.mp4", "video/mp4"),
        ("a.latent", "application/octet-stream"),
        ("a", "application/octet-stream"),
        ("png", "application/octet-stream"),
    ],
)
def test_the_media_type_comes_from_the_name(name: str, expected: str) -> None:
    assert media_type(name) == expected


class CountingStore(MemoryBlobStore):
    """Counts how often anything was read."""

    reads = 0

    def chunks(self, blob: str) -> Any:
        self.reads += 1
        return super().chunks(blob)


def test_an_input_is_fetched_once(source: FileSource, tmp_path: Path) -> None:
    store = CountingStore(chunk_bytes=10_000)
    ref = stored(store, source)
    cache = InputCache(tmp_path / "cache")
    assert not cache.has(ref)
    threads = [threading.Thread(target=cache.fetch, args=(store, ref)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.has(ref)
    assert cache.fetch(store, ref) == cache.path_of(ref)
    assert cache.path_of(ref).read_bytes() == CONTENT
    assert cache.path_of(ref).suffix == ".png"
    assert store.reads == 1


def _fetch_slowly(ref: FileRef, folder: Path, start: Any, reads: Any) -> None:
    class Slow(MemoryBlobStore):
        def chunks(self, blob: str) -> Any:
            with reads.get_lock():
                reads.value += 1
            threading.Event().wait(0.1)
            return super().chunks(blob)

    store = Slow(chunk_bytes=10_000)
    store.put("job/claim/f0", [CONTENT])
    start.wait()
    InputCache(folder).fetch(store, ref)


def test_an_input_is_fetched_once_by_several_processes(store: MemoryBlobStore, source: FileSource, tmp_path: Path) -> None:
    ref = stored(store, source)
    context = multiprocessing.get_context("spawn")
    start, reads = context.Barrier(3), context.Value("i", 0)
    processes = [context.Process(target=_fetch_slowly, args=(ref, tmp_path / "cache", start, reads)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert reads.value == 1


@pytest.fixture
def cache(tmp_path: Path) -> InputCache:
    return InputCache(tmp_path / "cache")


@pytest.fixture
def held(store: MemoryBlobStore, source: FileSource, cache: InputCache) -> Iterator[FileLock]:
    """The lock under which the content of `source` is fetched, held as by a worker that was stopped."""
    folder = cache.path_of(stored(store, source)).parent
    folder.mkdir(parents=True)
    with FileLock(folder / "lock") as lock:
        yield lock


def cancelled() -> None:
    raise ItemInterrupted(item_id="j-0")


def test_whoever_waits_for_another_worker_that_fetches_hears_a_cancel(
    store: MemoryBlobStore, source: FileSource, cache: InputCache, held: FileLock
) -> None:
    began = time.monotonic()
    with pytest.raises(ItemInterrupted):
        cache.fetch(store, stored(store, source), cancelled)
    assert time.monotonic() - began < 1
    assert not cache.has(stored(store, source))


def test_a_worker_that_was_stopped_while_it_fetched_does_not_hold_up_the_others(
    store: MemoryBlobStore, source: FileSource, cache: InputCache, held: FileLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LOCK_PATIENCE_S", 0.5)
    (held.path.parent / ".0123.part").write_bytes(CONTENT[:1000])
    fetched = cache.fetch(store, stored(store, source))
    assert fetched.read_bytes() == CONTENT
    assert held.descriptor, "it went on without the lock"
    assert sorted(path.name for path in fetched.parent.iterdir()) == sorted([".0123.part", "lock", fetched.name])


def test_a_worker_that_fetches_slowly_is_waited_for(
    source: FileSource, cache: InputCache, held: FileLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CountingStore(chunk_bytes=10_000)
    ref = stored(store, source)
    monkeypatch.setattr(files, "_LOCK_PATIENCE_S", 0.8)

    def fetch_slowly() -> None:
        partial = held.path.parent / ".0123.part"
        for end in range(10):
            partial.write_bytes(CONTENT[: 1000 * end])
            time.sleep(0.2)
        partial.write_bytes(CONTENT)
        partial.replace(cache.path_of(ref))
        held.release()

    other = threading.Thread(target=fetch_slowly)
    other.start()
    assert cache.fetch(store, ref).read_bytes() == CONTENT
    other.join()
    assert store.reads == 0


def test_a_file_that_is_there_needs_no_lock(store: MemoryBlobStore, source: FileSource, cache: InputCache, held: FileLock) -> None:
    cache.path_of(stored(store, source)).write_bytes(CONTENT)
    assert cache.fetch(store, stored(store, source), cancelled).read_bytes() == CONTENT


def test_a_cancel_is_heard_between_two_pieces_of_a_file(store: MemoryBlobStore, source: FileSource, cache: InputCache) -> None:
    looks = iter((False, False, True))

    def check() -> None:
        if next(looks):
            cancelled()

    with pytest.raises(ItemInterrupted):
        cache.fetch(store, stored(store, source), check)
    assert not cache.has(stored(store, source))
    assert [path.name for path in cache.path_of(stored(store, source)).parent.iterdir()] == ["lock"]
    assert cache.fetch(store, stored(store, source)).read_bytes() == CONTENT, "the lock is free"


def test_a_fetch_that_its_item_has_given_up_ends_with_the_next_piece_whatever_comes_after(source: FileSource, cache: InputCache) -> None:
    """The mark of an interrupted claim goes when the item is given back: the fetch must not take that for a word that it is wanted."""
    piece, asked, go_on = threading.Event(), [], threading.Event()

    class Slow(MemoryBlobStore):
        def chunks(self, blob: str) -> Any:
            for chunk in super().chunks(blob):
                asked.append(blob)
                if len(asked) == 2:
                    piece.set()
                    go_on.wait(30)
                yield chunk

    store = Slow(chunk_bytes=10_000)
    loaded = tuple(InputFile(str(number), "image", stored(store, source)) for number in range(2))
    request = RunRequest("claim", "job", 0, "generate", {}, (), {}, input_files=loaded)
    cluster: Any = SimpleNamespace(blobs=store)
    with pytest.raises(ItemInterrupted):
        bring_inputs(cluster, request, cache.folder, lambda: not piece.is_set() or go_on.is_set())
    (fetching,) = [thread for thread in threading.enumerate() if thread.name == "inputs"]
    go_on.set()
    fetching.join(10)
    assert not fetching.is_alive() and len(asked) == 2 and not cache.has(loaded[0].file)


def test_a_cached_file_that_was_cut_short_is_fetched_again(store: MemoryBlobStore, source: FileSource, tmp_path: Path) -> None:
    ref = stored(store, source)
    cache = InputCache(tmp_path / "cache")
    cache.fetch(store, ref).write_bytes(b"half")
    assert cache.fetch(store, ref).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_names_its_setting(store: MemoryBlobStore, source: FileSource, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheUnwritable, match="DC_CACHE_DIR"):
        InputCache(tmp_path / "file").fetch(store, stored(store, source))
