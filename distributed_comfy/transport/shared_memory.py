"""Folders of this host's shared memory in which workers leave the results of jobs that are collected on the same host.

A folder belongs to one job and stands for as long as its collector holds the lock in it, which the kernel frees when that process dies,
however it dies.  So a folder with a lock says all there is to know: whoever sees it runs on the same kernel with the same memory mounted
(two containers, or two users, see different ones), and somebody waits for what is put into it.  Nobody writes into a folder without a
holder; what lies there waits two minutes for another collector that goes on with the job, and is then removed by whoever finds it: the
next collector, or `sweep`, which every engine of this host calls now and then.

New pages cost more than the bytes in them (6 ms for 12.6 MB, measured, and 1.2 ms in pages that are there), so a few files that were read
stay for the next results of the job.  A reader's mapping carries a shared lock on its file, which goes with the mapping; nobody writes into
a file that is locked.
"""
from __future__ import annotations

import hashlib
import logging
import mmap
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distributed_comfy.file_lock import FileLock
from distributed_comfy.transport.frames import BytesLike

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

_MOUNT = Path("/dev/shm")  # where Linux has it
_LOCK = "lock"
_KEPT_FREE = 0.1
"""Share of the memory file system that is left to others."""
_LARGEST_WRITE_BYTES = 2**30
_SPARE, _SPARE_FILES = ".spare", 4
"""Files whose pages wait for the next result: their suffix, and how many of them a job keeps."""
_ORPHAN_S = 120.0
"""How long results wait for another collector when theirs has died or could not go on."""
_TRIES = 3
"""To get a folder: somebody may just be looking whether it can go."""


class SharedMemory:
    """The job folders of this user; see the module.

    Args:
        root: a folder in a memory file system; made where it is not there.
    Raises:
        OSError: it is not this user's own.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise PermissionError(f"{root} is not a folder of this user alone")
        self.root = root

    @contextmanager
    def offered(self, job_id: str) -> Iterator[bool]:
        """Let writers leave the job's results here while the context lasts; where it ends well, nothing of them is left.

        Yields:
            False where that cannot be: another process collects the job, or there is no room for a folder.
        """
        self.sweep()
        folder = self.root / job_key(job_id)
        lock = FileLock(folder / _LOCK)
        held = any(_hold(folder, lock) for _ in range(_TRIES))
        if not held:
            log.info("job %s: nothing goes through shared memory, %s cannot be had", job_id, folder)
        try:
            yield held
            if held:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            lock.release()

    def put(self, key: str, name: str, pieces: Sequence[BytesLike]) -> bool:
        """Write a file whole or not at all, in place of one of the same name.

        Args:
            key: of a job, see `job_key`.
            name: any text.
            pieces: its content.
        Returns:
            False where it must go another way: nobody on this host offers it, or there is no room.
        """
        size_bytes = sum(len(piece) for piece in pieces)
        folder = self.root / key
        if not folder.is_dir() or not self._has_room(size_bytes) or not self._is_offered(folder):
            return False
        partial = folder / f"{uuid.uuid4().hex}.part"
        try:
            _write(_take_spare(folder, partial, size_bytes), pieces, size_bytes)
            partial.rename(folder / _file_name(name))
        except OSError as error:  # the collector has just ended, or the memory was needed elsewhere
            log.debug("%s does not go through shared memory: %s", name, error)
            partial.unlink(missing_ok=True)
            return False
        return True

    def get(self, key: str, name: str) -> memoryview | None:
        """The content in the caller's own, writable pages, which are copied only where he writes; None where it is not here."""
        path = self.root / key / _file_name(name)
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                found = os.fstat(file.fileno())
                if found.st_ino != path.stat().st_ino:  # it was read, and written anew, before it was locked
                    return None
                # The mapping has a descriptor of the same open file, and with it the lock.
                return memoryview(mmap.mmap(file.fileno(), found.st_size, access=mmap.ACCESS_COPY) if found.st_size else bytearray())
        except OSError:
            return None

    def exists(self, key: str, name: str) -> bool:
        """Whether it is here."""
        return (self.root / key / _file_name(name)).exists()

    def unlink(self, key: str, name: str) -> None:
        """Remove it, where it is here; whoever has it open keeps his pages."""
        path = self.root / key / _file_name(name)
        try:
            if len(list(path.parent.glob(f"*{_SPARE}"))) < _SPARE_FILES:
                path.rename(path.with_name(uuid.uuid4().hex + _SPARE))
            else:
                path.unlink()
        except OSError:  # it is not here
            pass

    def drop_job(self, job_id: str) -> None:
        """Remove all that was written for a job so far."""
        for path in self._files(self.root / job_key(job_id)):
            path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove the folders that no collector has had for a while."""
        for folder in self._files(self.root):
            if folder.is_dir():
                self._is_offered(folder)

    def _is_offered(self, folder: Path) -> bool:
        """Whether it has a collector; it goes where it has had none for a while."""
        lock = FileLock(folder / _LOCK)
        try:
            if not lock.try_acquire():
                return True
            if time.time() - folder.stat().st_mtime > _ORPHAN_S:
                log.info("removing %s, which nobody collects from any more", folder)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # it went just now
            pass
        lock.release()
        return False

    def _has_room(self, size_bytes: int) -> bool:
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize - size_bytes >= found.f_blocks * found.f_frsize * _KEPT_FREE

    @staticmethod
    def _files(folder: Path) -> list[Path]:
        try:
            return [path for path in folder.iterdir() if path.name != _LOCK]
        except OSError:
            return []


def open_shared_memory(root: Path | None = None) -> SharedMemory | None:
    """That of this host and user; None where there is none: not Linux, no memory file system, or no right to it.

    Args:
        root: another folder than the usual one.
    """
    if sys.platform != "linux" or (root is None and not is_memory(_MOUNT, Path("/proc/self/mounts"))):
        return None
    try:
        return SharedMemory(root or _MOUNT / f"distributed-comfy-{os.getuid()}")
    except OSError as error:
        log.info("nothing goes through shared memory: %s", error)
        return None


def is_memory(folder: Path, mounts: Path) -> bool:
    """Whether a memory file system is mounted there: never on a disk, never of another host.

    Args:
        folder: the mount point.
        mounts: the kernel's list.
    """
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return False
    found = [words[2] for line in lines if len(words := line.split()) > 2 and words[1] == str(folder)]
    return found[-1:] == ["tmpfs"]  # the last one lies on top


def job_key(job_id: str) -> str:
    """Name of a job's folder."""
    return hashlib.sha256(job_id.encode()).hexdigest()[:16]


def is_job_key(text: str) -> bool:
    """Whether `job_key` may have given it."""
    return re.fullmatch(r"[0-9a-f]{16}", text) is not None


def _hold(folder: Path, lock: FileLock) -> bool:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if lock.try_acquire() and lock.path.exists():
            return True
    except OSError as error:
        log.debug("%s: %s", folder, error)
    lock.release()
    return False


def _file_name(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:40]


def _take_spare(folder: Path, partial: Path, size_bytes: int) -> int:
    """An open file ``partial``; if that can be, of pages that are there already: of the spare file nearest in size that nobody reads."""
    for spare in sorted(folder.glob(f"*{_SPARE}"), key=lambda path: abs(_size(path) - size_bytes)):
        try:
            spare.rename(partial)
        except FileNotFoundError:  # another writer was faster
            continue
        descriptor = os.open(partial, os.O_WRONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            partial.rename(spare)
            continue
        return descriptor
    return os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _write(descriptor: int, pieces: Sequence[BytesLike], size_bytes: int) -> None:
    """Write and close; the lock goes with it."""
    try:
        for piece in pieces:
            rest = memoryview(piece).cast("B")
            while rest:
                rest = rest[os.write(descriptor, rest[:_LARGEST_WRITE_BYTES]) :]
        os.ftruncate(descriptor, size_bytes)
    finally:
        os.close(descriptor)
