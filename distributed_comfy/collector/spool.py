"""The spool: a job's folder on the master's disk, where results lie from the moment they are fetched.

Each result's blobs are kept byte for byte as they came, so that a tensor can be mapped into memory, checked again and fed to the last
stage without being encoded anew.  An item is in the spool when its index file is; that file is written last and renamed into place,
after its blobs reached the disk, so a crash at any moment leaves items whole or absent.

Layout::

    spool.json                      format, job id, resume key
    ended                           there if the job failed or was cancelled, see `Spool.mark_ended`
    lock                            held by the collector that uses the folder
    feed.json                       how far a claim of the last stage was fed
    saved.jsonl                     which files are in the user's folder already
    partial/                        files for the user's folder while they are written
    items/000012.json               index file: claim, result, and the file and size of each blob
    items/000012-<claim hash>/0.blob, 1.blob...
"""
from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed_comfy import messages
from distributed_comfy.collector.naming import writing
from distributed_comfy.collector.saved import SavedFiles
from distributed_comfy.errors import BlobMissing, FrameMalformed, MessageVersionUnknown, SpoolUnusable
from distributed_comfy.file_lock import FileLock
from distributed_comfy.messages import FileRef, ItemResult, TensorRef
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.transport.feed_names import tensors_of
from distributed_comfy.transport.files import fetch_file
from distributed_comfy.transport.frames import decode_tensor, read_header

log = logging.getLogger(__name__)

SPOOL_FORMAT = 1
"""Version of the layout; a change that old code cannot read raises it."""
SPOOL_FOLDER = ".distributed-comfy"
"""Below the user's folder: one spool per unfinished job, see `spool_folder`."""
MANIFEST = "spool.json"
"""What says to which job a spool belongs."""
ENDED = "ended"
"""File that says: the job of this spool failed or was cancelled; how long ago, its time says."""
ITEMS = "items"
"""Folder of the items, below the spool's own."""


@dataclass(frozen=True)
class SpoolManifest:
    """What a spool belongs to."""

    job_id: str
    resume_key: str = ""
    """Hash of everything that decides the job's result; a job with the same key may use the items."""
    format: int = SPOOL_FORMAT


@dataclass(frozen=True)
class SpooledItem:
    """One item's index file."""

    index: int
    claim_id: str
    """The execution that gave this result."""
    result: ItemResult
    folder: str
    """Folder of its blobs, below ``items``."""
    files: dict[str, tuple[str, int]]
    """Blob id -> file name in `folder` and its size in bytes."""
    replaced: tuple[str, ...] = ()
    """Claims whose result this one replaced; they cannot come back."""


def spool_folder(out: Path, job_id: str) -> Path:
    """Where the results of a job lie until its files are in ``out``."""
    return out / SPOOL_FOLDER / job_id


def read_manifest(folder: Path) -> SpoolManifest | None:
    """What the spool in ``folder`` belongs to; None where there is none.

    Raises:
        MessageVersionUnknown: another version of this project wrote it.
    """
    try:
        plain = json.loads((folder / MANIFEST).read_text("utf-8"))
        manifest = SpoolManifest(str(plain["job_id"]), str(plain["resume_key"]), int(plain["format"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise MessageVersionUnknown(kind="spool", version="?", known=[SPOOL_FORMAT]) from error
    if manifest.format != SPOOL_FORMAT:
        raise MessageVersionUnknown(kind="spool", version=manifest.format, known=[SPOOL_FORMAT])
    return manifest


class SpooledBlobs:
    """One item of a spool that another process may have open: only read, without a lock.

    Args:
        folder: of the spool.
        item: its index file.
    """

    def __init__(self, folder: Path, item: SpooledItem) -> None:
        self.result = item.result
        """What the item's worker sent."""
        self._folder = folder / ITEMS / item.folder
        self._files = item.files

    def get(self, blob: str) -> memoryview:
        """See `BlobReader.get`; `BlobMissing` also where the spool was removed meanwhile."""
        try:
            return np.fromfile(self._folder / self._files[blob][0], np.uint8).data
        except (KeyError, FileNotFoundError) as error:
            raise BlobMissing(blob=blob) from error


def find_spooled(folder: Path, job_id: str, index: int) -> SpooledBlobs | None:
    """The item in the spool of this job; None where folder or item are not there (any more)."""
    try:
        manifest = read_manifest(folder)
        item = messages.load(SpooledItem, _index_path(folder, index).read_bytes())
    except (MessageVersionUnknown, OSError):
        return None
    return SpooledBlobs(folder, item) if manifest is not None and manifest.job_id == job_id else None


class Spool:
    """One job's spool, locked while it is open; its methods may be called from several threads.

    Args:
        folder: made if it is not there.
        manifest: the job; its resume key is kept for a later job that may take the items over.
    Raises:
        SpoolUnusable: another collector has it open, or it belongs to another job.
        OutputUnwritable: the folder cannot be made or written.
        MessageVersionUnknown: another version of this project wrote it.
    """

    def __init__(self, folder: Path, manifest: SpoolManifest) -> None:
        self.folder = folder
        self.partial = folder / "partial"
        """For files on their way to the user's folder, which is on the same disk; empty at the start."""
        self.manifest = manifest
        self._changing = threading.Lock()
        self._saved: dict[Path, SavedFiles] = {}
        with writing(folder):
            self._items_folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / "lock")
            if not self._lock.try_acquire():
                raise SpoolUnusable(folder=str(folder), reason="another collector uses it")
        try:
            self._items = self._open()
        except BaseException:
            self._lock.release()
            raise

    # -- what is there
    def has(self, index: int) -> bool:
        """Whether this item is here whole."""
        return index in self._items

    def items(self) -> list[int]:
        """Indexes of the items that are here whole, in order."""
        return sorted(self._items)

    def claim_id(self, index: int) -> str | None:
        """The execution that gave the item's result; None where it is not here."""
        item = self._items.get(index)
        return item.claim_id if item else None

    def result(self, index: int) -> ItemResult:
        """The item's result as its worker sent it; `KeyError` where it is not here."""
        return self._items[index].result

    def array(self, index: int, ref: TensorRef) -> NDArray[Any]:
        """A tensor of the item's result, its checksum compared; a plain one is read-only and mapped from disk, another is decoded.

        Each mapped array holds a file open until it is let go of, so keep a few at a time rather than a job's all.

        Args:
            ref: a tensor somewhere in `result`.
        Returns:
            In the tensor's shape and element type; bfloat16 as the float32 of the same value, in memory.
        Raises:
            FrameError: the file was damaged after it was spooled.
        """
        frame = self.frame(index, ref)
        return decode_tensor(frame, limit_bytes=max(len(frame), ref.size_bytes))

    def frame(self, index: int, ref: TensorRef) -> memoryview:
        """The tensor's frame, byte for byte as it was fetched, mapped from disk."""
        return _mapped(self.path(index, ref.blob))

    def path(self, index: int, blob: str) -> Path:
        """Where a blob of the item's result lies; read it only. `KeyError` where it is not here."""
        item = self._items[index]
        return self._items_folder / item.folder / item.files[blob][0]

    def blob_bytes(self, index: int, blob: str) -> int:
        """Length of a blob of the item's result; `KeyError` where it is not here."""
        return self._items[index].files[blob][1]

    def saved_files(self, out: Path) -> SavedFiles:
        """Which files of the job lie in the user's folder; one object for all who save there."""
        with self._changing:
            return self._saved.setdefault(out, SavedFiles(self.folder, out))

    # -- changes
    def add(self, index: int, claim_id: str, result: ItemResult, store: BlobStore) -> bool:
        """Fetch a result's blobs and keep it; on return it survives a crash, and the blobs may be unlinked.

        The same item may come again, from the same claim (nothing changes) or from a later one (the item replaces the one before).

        Returns:
            False where the claim was replaced by a later one before, so that nothing was kept.
        Raises:
            BlobMissing, FrameError: a blob is gone or differs from its record; nothing was kept.
            OutputUnwritable: the disk is full or the folder may not be written.
            ConnectionLost: the blob store cannot be reached.
        """
        old = self._items.get(index)
        if old is not None and (old.claim_id == claim_id or claim_id in old.replaced):
            return old.claim_id == claim_id
        replaced = (*old.replaced, old.claim_id) if old else ()
        item = SpooledItem(index, claim_id, result, f"{index:06}-{_short_hash(claim_id)}", {}, replaced)
        blobs = self._items_folder / item.folder
        with writing(blobs):
            try:
                item = replace(item, files=_fetch(blobs, result, store))
                self._commit(item)
            except BaseException:
                shutil.rmtree(blobs, ignore_errors=True)
                raise
        if old is not None:  # what is still mapped stays readable, or is swept away at the next start
            shutil.rmtree(self._items_folder / old.folder, ignore_errors=True)
        return True

    def discard(self, index: int) -> None:
        """Forget an item, for example because `array` found it damaged."""
        item = self._items.pop(index, None)
        if item is not None:
            with writing(self.folder):
                _index_path(self.folder, index).unlink(missing_ok=True)
            shutil.rmtree(self._items_folder / item.folder, ignore_errors=True)

    def note_fed(self, claim_id: str, counts: list[int]) -> None:
        """Remember how many values of each lane of the feed were uploaded for this claim, see `feed`."""
        with writing(self.folder):
            _write_atomically(self.folder / "feed.json", {"claim_id": claim_id, "counts": counts}, lasting=False)

    def fed(self, claim_id: str) -> list[int]:
        """What `note_fed` noted for this claim; empty for another."""
        try:
            plain = json.loads((self.folder / "feed.json").read_text("utf-8"))
            return [int(count) for count in plain["counts"]] if plain["claim_id"] == claim_id else []
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return []

    def mark_ended(self) -> None:
        """The job failed or was cancelled: its items wait for a run that goes on with them, and go with time; see `remove_ended`."""
        with writing(self.folder):
            (self.folder / ENDED).touch()

    def close(self) -> None:
        """Let another collector have it; the items stay."""
        self._lock.release()

    def remove(self) -> None:
        """Delete the folder with everything in it, and close."""
        self._items.clear()
        for folder in (self._items_folder, self.partial):
            shutil.rmtree(folder, ignore_errors=True)
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- inside
    @property
    def _items_folder(self) -> Path:
        return self.folder / ITEMS

    def _open(self) -> dict[int, SpooledItem]:
        """Read the index files and sweep away what a crash left."""
        found = read_manifest(self.folder)
        if found is not None and found.job_id != self.manifest.job_id:
            raise SpoolUnusable(folder=str(self.folder), reason=f"it belongs to job {found.job_id}")
        with writing(self.folder):
            if found is None:
                _write_atomically(self.folder / MANIFEST, asdict(self.manifest))
            (self.folder / ENDED).unlink(missing_ok=True)  # somebody goes on with it
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir()
            items = {item.index: item for item in map(self._read_item, sorted(self._items_folder.glob("*.json"))) if item}
            kept = {name for item in items.values() for name in (item.folder, _index_path(self.folder, item.index).name)}
            for path in self._items_folder.iterdir():
                if path.name not in kept:
                    log.info("job %s: removing %s, which a crash left unfinished", self.manifest.job_id, path.name)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        return items

    def _read_item(self, path: Path) -> SpooledItem | None:
        """The item of an index file, or None where file or blobs are not whole."""
        try:
            item = messages.load(SpooledItem, path.read_bytes())
            whole = all((self._items_folder / item.folder / name).stat().st_size == size for name, size in item.files.values())
        except (MessageVersionUnknown, FileNotFoundError):
            return None
        return item if whole and path == _index_path(self.folder, item.index) else None

    def _commit(self, item: SpooledItem) -> None:
        with self._changing:
            _write_atomically(_index_path(self.folder, item.index), messages.to_plain(item))
            self._items[item.index] = item


def _index_path(folder: Path, index: int) -> Path:
    """Of an item, in a spool's folder."""
    return folder / ITEMS / f"{index:06}.json"


def references(result: ItemResult) -> Iterator[TensorRef | FileRef]:
    """Everything in a result that points to a blob, captures first."""
    for capture in result.captures:
        yield from tensors_of(capture.value)
    yield from result.files


def _fetch(folder: Path, result: ItemResult, store: BlobStore) -> dict[str, tuple[str, int]]:
    """Write every blob of the result below ``folder``, checked and on the disk; blob id -> file name and size."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files: dict[str, tuple[str, int]] = {}
    for ref in references(result):
        if ref.blob not in files:
            path = folder / f"{len(files)}.blob"
            if isinstance(ref, FileRef):
                fetch_file(store, ref, folder, name=path.name)
                _sync(path)
            else:
                _fetch_frame(path, ref, store)
            files[ref.blob] = (path.name, path.stat().st_size)
    _sync(folder)
    return files


def _fetch_frame(path: Path, ref: TensorRef, store: BlobStore) -> None:
    """Write a frame as it comes, then check it against itself and its record."""
    with path.open("wb") as file:
        for chunk in store.chunks(ref.blob):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    frame = _mapped(path)
    limit_bytes = max(len(frame), ref.size_bytes)
    header = read_header(frame, limit_bytes=limit_bytes)
    if (header.dtype, header.shape, header.size_bytes) != (ref.dtype, ref.shape, ref.size_bytes):
        found, expected = f"{header.dtype} {list(header.shape)}", f"{ref.dtype} {list(ref.shape)}"
        raise FrameMalformed(reason=f"blob {ref.blob} holds {found}, its record says {expected}")
    decode_tensor(frame, limit_bytes=limit_bytes)


def _mapped(path: Path) -> memoryview:
    """A file's bytes, read-only, without reading them; the mapping ends with the last view of it."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _write_atomically(path: Path, plain: Any, *, lasting: bool = True) -> None:
    """JSON at ``path``, whole or not at all; ``lasting`` also after a power cut."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(plain), encoding="utf-8")
    if lasting:
        _sync(partial)
    os.replace(partial, path)
    if lasting:
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot sync a folder and needs no such call for a rename
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short_hash(text: str) -> str:
    """A claim id as a part of a file name."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
