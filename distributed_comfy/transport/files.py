"""Files by content: into the blob store, out of it into a folder they cannot leave, and kept on a worker by their hash."""
from __future__ import annotations

import hashlib
import logging
import mimetypes
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Literal

from distributed_comfy.errors import (
    CacheUnwritable,
    DistributedComfyError,
    FileDamaged,
    FileNameUnsafe,
    FileTooLarge,
    FileUnreadable,
    OutputUnwritable,
)
from distributed_comfy.file_lock import FileLock
from distributed_comfy.messages import FileRef
from distributed_comfy.transport.blobs import BlobStore

log = logging.getLogger(__name__)

_READ_BYTES = 2**20
_LOCK_TRY_S = 0.2
_LOCK_PATIENCE_S = 10.0
"""How long whoever has the lock of a cache's folder may bring nothing into it; a chunk takes that long through a slow line."""
_MEDIA_TYPES = {
    ".flac": "audio/flac",
    ".glb": "model/gltf-binary",
    ".latent": "application/octet-stream",
    ".mkv": "video/x-matroska",
    ".mp4": "video/mp4",
    ".opus": "audio/ogg",
    ".webm": "video/webm",
    ".webp": "image/webp",
}
"""Formats that ComfyUI writes and that not every Python's own table has."""


@dataclass(frozen=True)
class FileSource:
    """A file of this host that is to travel, and what it is called there."""

    path: Path
    name: str
    """Path relative to its folder, with ``/``; what the receiver will call it."""
    folder: Literal["input", "output", "temp"] = "output"
    """Which of ComfyUI's folders it belongs to."""
    node_id: str = ""
    """The output node that wrote it; empty for an input."""


def store_file(store: BlobStore, source: FileSource, *, blob_name: str, job_id: str, limit_bytes: int) -> FileRef:
    """Stream a file into the blob store.

    Args:
        blob_name: of the blob; holds the claim id for an output, the hash for an input.
        job_id: the job whose blobs it is one of.
        limit_bytes: largest file.
    Raises:
        FileNameUnsafe: the name would leave the folder at the receiver.
        FileUnreadable: it cannot be read, or changes while it is.
        FileTooLarge, BlobStoreFull, ConnectionLost.
    """
    check_name(source.name)
    digest = hashlib.sha256()
    try:
        with source.path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > limit_bytes:
                raise FileTooLarge(name=source.name, size_bytes=size_bytes, limit_bytes=limit_bytes)
            blob = store.put(blob_name, _read(file, size_bytes, digest.update), size_bytes=size_bytes, job_id=job_id)
    except OSError as error:
        raise FileUnreadable(path=str(source.path), reason=_reason(error)) from error
    return FileRef(
        name=source.name,
        media_type=media_type(source.name),
        sha256=digest.hexdigest(),
        size_bytes=size_bytes,
        blob=blob,
        folder=source.folder,
        node_id=source.node_id,
    )


def _go_on() -> None:
    """The check of whoever lets a fetch run to its end."""


def fetch_file(store: BlobStore, ref: FileRef, destination: Path, *, name: str = "", check: Callable[[], None] = _go_on) -> Path:
    """Write a file from the blob store into a folder; it appears there whole and checked, or not at all.

    Args:
        destination: the folder; it and the folders in the name are created.
        name: another name than the record's, with the same rules.
        check: called for each piece that arrives; what it raises ends the fetch.
    Returns:
        The file's path; a file that was there before is replaced.
    Raises:
        FileNameUnsafe: the name leads out of the folder (absolute, a drive, ``..``, a backslash, a NUL); nothing was written.
        FileDamaged: size or hash differ from the record.
        OutputUnwritable: the disk is full, the folder read-only...
        BlobMissing, ConnectionLost.
    """
    path = destination.joinpath(*check_name(name or ref.name).parts)
    partial = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_checked(store, ref, partial, check)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputUnwritable(path=str(path), reason=_reason(error)) from error
    return path


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content.

    Raises:
        FileUnreadable: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise FileUnreadable(path=str(path), reason=_reason(error)) from error
    return digest.hexdigest()


def check_name(name: str) -> PurePosixPath:
    """``name`` as a path that stays inside its folder on every system.

    Raises:
        FileNameUnsafe: see `fetch_file`.
    """
    # Windows drops dots and spaces at the end of a part, so ".. ." would be "..", and writes "ab:c" as a stream of file ab.
    inside = all(part.strip(" .") for part in name.split("/")) and not PureWindowsPath(name).drive
    if not inside or "\\" in name or "\0" in name or (os.name == "nt" and ":" in name) or not _is_text(name):
        raise FileNameUnsafe(name=name)
    return PurePosixPath(name)


def _is_text(name: str) -> bool:
    """False where no record can hold the name: one in other letters than a system's own has lone surrogates in Python."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def media_type(name: str) -> str:
    """MIME type by the name's ending, the same on every host; ``application/octet-stream`` when unknown."""
    ending = PurePosixPath(name).suffix.lower()
    return _MEDIA_TYPES.get(ending) or mimetypes.MimeTypes().types_map[True].get(ending, "application/octet-stream")


class InputCache:
    """Input files of a host by content hash: each is fetched once, also when several workers ask for it at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, ref: FileRef) -> Path:
        """Where the content lies once it is fetched; keeps the name's ending, by which loaders tell formats apart.

        Raises:
            FileNameUnsafe: the hash in the record is not one.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", ref.sha256):
            raise FileNameUnsafe(name=ref.sha256)
        ending = PurePosixPath(ref.name).suffix
        return self.folder / ref.sha256[:2] / (ref.sha256 + (ending if re.fullmatch(r"\.\w{1,12}", ending, re.ASCII) else ""))

    def fetch(self, store: BlobStore, ref: FileRef, check: Callable[[], None] = _go_on) -> Path:
        """The file's path, after bringing its content here if it is not.

        Whoever fetches a file already is waited for only while it brings something: it may have been stopped with the lock in its hand.
        A content that comes twice so does no harm, for each appears whole.

        Args:
            check: called again and again, while another fetches and for each piece that arrives; what it raises ends the fetch.
        Raises:
            CacheUnwritable: the disk is full, the folder read-only...
            FileDamaged, BlobMissing, ConnectionLost: as `fetch_file`.
        """
        path = self.path_of(ref)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.has(ref):  # needs no lock, which somebody may hold for another file
                return path
            with _locked_if_it_moves(path.parent, check):
                if not self.has(ref):
                    fetch_file(store, ref, path.parent, name=path.name, check=check)
                    log.info("fetched input %s (%d bytes) as %s", ref.name, ref.size_bytes, path.name)
        except (OSError, OutputUnwritable) as error:
            raise CacheUnwritable(path=str(path), reason=_reason(error)) from error
        return path

    def has(self, ref: FileRef) -> bool:
        """Whether the content is here; only the length is compared, for the hash was checked when it came."""
        try:
            return self.path_of(ref).stat().st_size == ref.size_bytes
        except FileNotFoundError:
            return False


@contextmanager
def _locked_if_it_moves(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """The lock of a cache's folder, or none where its holder has brought nothing for `_LOCK_PATIENCE_S`."""
    lock, brought, give_up = FileLock(folder / "lock"), _arriving(folder), time.monotonic() + _LOCK_PATIENCE_S
    while not lock.acquire(_LOCK_TRY_S):
        check()
        before, brought = brought, _arriving(folder)
        if brought != before:
            give_up = time.monotonic() + _LOCK_PATIENCE_S
        elif time.monotonic() >= give_up:
            log.warning("%s is locked by a process that has fetched nothing for %g s; fetching beside it", folder, _LOCK_PATIENCE_S)
            break
    try:
        yield
    finally:
        lock.release()


def _arriving(folder: Path) -> dict[str, int]:
    """Name and length of each file that is being fetched into a folder."""
    found = {}
    for path in folder.glob(".*.part"):
        with suppress(FileNotFoundError):  # it has arrived meanwhile
            found[path.name] = path.stat().st_size
    return found


def _read(file: BinaryIO, size_bytes: int, update: Callable[[bytes], None]) -> Iterator[bytes]:
    found_bytes = 0
    while block := file.read(_READ_BYTES):
        found_bytes += len(block)
        if found_bytes > size_bytes:
            break
        update(block)
        yield block
    if found_bytes != size_bytes:
        raise FileUnreadable(path=file.name, reason="it changed while it was read")


def _write_checked(store: BlobStore, ref: FileRef, partial: Path, check: Callable[[], None]) -> None:
    digest, found_bytes = hashlib.sha256(), 0
    with partial.open("xb") as file:
        for chunk in store.chunks(ref.blob):
            check()
            found_bytes += len(chunk)
            if found_bytes > ref.size_bytes:
                break
            digest.update(chunk)
            file.write(chunk)
    if found_bytes != ref.size_bytes:
        raise FileDamaged(name=ref.name, found=f"{found_bytes} bytes", expected=f"{ref.size_bytes} bytes")
    if digest.hexdigest() != ref.sha256:
        raise FileDamaged(name=ref.name, found=f"sha256 {digest.hexdigest()}", expected=f"sha256 {ref.sha256}")


def _reason(error: Exception) -> str:
    if isinstance(error, DistributedComfyError):
        return str(error.fields["reason"])
    return getattr(error, "strerror", None) or str(error)
