"""The files of a job that lie on this host: which they are, and whether more come."""
from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from mimetypes import guess_type
from pathlib import Path, PurePosixPath
from typing import Any

from PIL.PngImagePlugin import PngImageFile

from distributed_comfy.collector.saved import SavedFiles
from distributed_comfy.collector.spool import SPOOL_FOLDER
from distributed_comfy.errors import ResultNotHere
from distributed_comfy.panel.place import Place
from distributed_comfy.state.records import JobState, SpoolPlace
from tasks.cluster import Cluster

_MOST_FILES = 5000
_MOST_ENTRIES = 200_000
"""Of a folder and those below it, whoever they belong to."""
_MOST_OPENED = 1000
"""Of the files of a job whose spool is gone, how many are opened to see of which item they are."""
_BEFORE_S, _AFTER_S = 2.0, 600.0
"""A job's files are those of its folder that were written from its submission to its end, and so much around that."""
_SAVING_S = 60.0
"""So long after its end a spool that stays is one that somebody wants to keep, and not of a job whose files are still written."""


@dataclass(frozen=True)
class FoundFile:
    """A file, as it was found."""

    path: Path
    size_bytes: int
    written_s: float


@dataclass(frozen=True)
class JobResults:
    """What of a job lies on this host."""

    folder: Path | None
    """None: its files are elsewhere, or nowhere yet."""
    files: Sequence[FoundFile] = ()
    complete: bool = False
    """Whether no more come."""
    items: Mapping[Path, int] = field(default_factory=dict)
    """The item that a file is of, where that is known."""


@dataclass(frozen=True)
class _Window:
    """When a job's files were written, by this host's clock."""

    first_s: float
    last_s: float

    def has(self, file: FoundFile) -> bool:
        return self.first_s <= file.written_s <= self.last_s


class JobFiles:
    """Answers for one panel; waits for Redis and disk.

    Args:
        place: what serves the panel.
        jobs: all that are known, for those that save into the same folder.
    """

    def __init__(self, place: Place, jobs: Callable[[], Mapping[str, JobState]]) -> None:
        self._place = place
        self._jobs = jobs

    def shown(self, cluster: Cluster, job_id: str, state: JobState) -> dict[str, Any]:
        """As the parts of ``JobDetail`` of openapi.json that say where results are."""
        found, spool = self.of(cluster, job_id, state), cluster.jobs.spool(job_id)
        folder = found.folder
        if folder is None:
            here = {"results_here": False, "results_host": spool.host if spool else "", "results_folder": spool.out if spool else ""}
            return {**here, "results": [], "results_complete": state.ended}
        listed = [
            {"path": file.path.relative_to(folder).as_posix(), "name": file.path.name, "media_type": media_type(file.path),
             "size_bytes": file.size_bytes, "item": found.items.get(file.path)}
            for file in found.files
        ]  # fmt: skip
        return {
            "results_here": True, "results_host": self._place.settings.host_name, "results_folder": str(folder), "results": listed,
            "results_complete": found.complete,
        }  # fmt: skip

    def of(self, cluster: Cluster, job_id: str, state: JobState) -> JobResults:
        """All files of a job on this host."""
        own = self._of_master(cluster, job_id, state)
        if own is not None:
            return own
        spool = cluster.jobs.spool(job_id)
        if not self._is_here(spool):
            return JobResults(None)
        assert spool is not None
        out, complete = Path(spool.out), self._is_complete(cluster, state, spool)
        named = _named(spool)
        if named is not None:
            return JobResults(out, [found for path in sorted(named) if (found := _found(path)) is not None], complete, named)
        window, files = self._window(cluster, job_id, state, spool), []
        for file in _files_below(out):
            if window.has(file):
                files.append(file)
                if len(files) >= _MOST_FILES:
                    break
        files.sort(key=lambda file: file.path)
        return JobResults(out, files, complete, _items_by_seed(files, cluster, job_id))

    def one(self, cluster: Cluster, job_id: str, state: JobState, path: str) -> Path:
        """The one of them at this path; nothing else is ever given, and no folder is read for it.

        Raises:
            ResultNotHere: it is none of them.
        """
        own = self._of_master(cluster, job_id, state)
        spool = cluster.jobs.spool(job_id) if own is None else None
        found: FoundFile | None = None
        if own is not None:
            found = next((file for file in own.files if own.folder and file.path.relative_to(own.folder).as_posix() == path), None)
        elif spool is not None and self._is_here(spool):
            found, named = _below(Path(spool.out), path), _named(spool)
            if found is not None:
                belongs = found.path in named if named is not None else self._window(cluster, job_id, state, spool).has(found)
                found = found if belongs else None
        if found is None:
            raise ResultNotHere(job_id=job_id, name=path[:200])
        return found.path

    # -- of a ComfyUI ----------------------------------------------------------------------------------------------------
    def _of_master(self, cluster: Cluster, job_id: str, state: JobState) -> JobResults | None:
        """What this ComfyUI knows of a prompt of its own; None where it is not its own."""
        master = self._place.master
        if master is None:
            return None
        over = master.is_over(job_id)  # first: what it saves until then is among its files
        named = master.files(job_id)
        if named is not None:
            files = [found for path in named if (found := _found(Path(path))) is not None]
            return _common(files, self._place.out, complete=over)
        spool = cluster.jobs.spool(job_id)
        if spool is not None and spool.host == self._place.settings.host_name and self._is_in_cache(spool):
            return JobResults(self._place.out, (), complete=state.ended)  # of a prompt from before this ComfyUI was started again
        return None

    # -- of a folder -----------------------------------------------------------------------------------------------------
    def _is_in_cache(self, spool: SpoolPlace) -> bool:
        """Whether a ComfyUI collects it, which saves elsewhere what it makes of it."""
        return Path(spool.out).is_relative_to(self._place.settings.cache_folder.absolute())

    def _is_here(self, spool: SpoolPlace | None) -> bool:
        here = spool is not None and spool.host == self._place.settings.host_name and bool(spool.out)
        return here and spool is not None and not self._is_in_cache(spool) and Path(spool.out).is_dir()

    def _is_complete(self, cluster: Cluster, state: JobState, spool: SpoolPlace) -> bool:
        if not state.ended:
            return False
        return not Path(spool.folder).is_dir() or cluster.hosts.now_ms() - state.ended_ms > _SAVING_S * 1000

    def _window(self, cluster: Cluster, job_id: str, state: JobState, spool: SpoolPlace) -> _Window:
        """Until the next job with the same folder began, where that was after the end of this one."""
        offset_s = time.time() - cluster.hosts.now_ms() / 1000  # of this host's clock, by which its files are dated
        first_s = state.created_ms / 1000 - _BEFORE_S
        if not state.ended_ms:
            return _Window(first_s + offset_s, float("inf"))
        last_ms = state.ended_ms + _AFTER_S * 1000
        later = sorted(
            (other.created_ms, name)
            for name, other in self._jobs().items()
            if name != job_id and state.ended_ms <= other.created_ms <= last_ms
        )
        for created_ms, name in later:
            other = cluster.jobs.spool(name)
            if other is not None and (other.host, other.out) == (spool.host, spool.out):
                last_ms = created_ms
                break
        return _Window(first_s + offset_s, last_ms / 1000 + offset_s)


def media_type(file: Path) -> str:
    """By its name."""
    return guess_type(file.name)[0] or "application/octet-stream"


def _named(spool: SpoolPlace) -> dict[Path, int] | None:
    """The files that the spool of a job names, and the item of each; None where it has none (any more)."""
    if not Path(spool.folder).is_dir():
        return None
    try:
        named = SavedFiles(Path(spool.folder), Path(spool.out)).items()
        return {path: item for path, item in named.items() if path.is_relative_to(spool.out)}
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _items_by_seed(files: Sequence[FoundFile], cluster: Cluster, job_id: str) -> dict[Path, int]:
    """The item of each picture in which our saver has written a seed that no other item of the job has."""
    specs = cluster.jobs.specs(job_id) if any(file.path.suffix == ".png" for file in files) else {}
    seeds = Counter(spec.seed for spec in specs.values() if spec.seed)
    items = {spec.seed: index for index, spec in specs.items() if seeds[spec.seed] == 1}
    pictures = [file.path for file in files if file.path.suffix == ".png"][:_MOST_OPENED] if items else []
    return {path: items[seed] for path in pictures if (seed := _seed_in(path)) in items}


def _seed_in(picture: Path) -> str:
    """As `collector.save.FileMetadata` writes it; empty where there is none."""
    try:
        with PngImageFile(picture) as opened:  # Image.open would refuse the largest upscales, whose pixels nobody reads here
            return str(opened.info.get("seed", ""))
    except (OSError, ValueError, SyntaxError):
        return ""


def _common(files: Sequence[FoundFile], otherwise: Path, *, complete: bool) -> JobResults:
    """These files, and the folder in which all of them lie."""
    unique = sorted({file.path: file for file in files}.values(), key=lambda file: file.path)
    if not unique:
        return JobResults(otherwise, (), complete)
    unique = [file for file in unique if file.path.anchor == unique[0].path.anchor]  # on Windows another drive has no folder in common
    folder = unique[0].path.parent
    while not all(file.path.is_relative_to(folder) for file in unique):
        folder = folder.parent
    return JobResults(folder, unique, complete)


def _found(path: Path) -> FoundFile | None:
    """None where it is no file (any more)."""
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return None
    return FoundFile(path, facts.st_size, facts.st_mtime) if path.is_file() else None


def _below(folder: Path, path: str) -> FoundFile | None:
    """The file at a path below a folder; no link is followed, and no spool looked into."""
    parts = PurePosixPath(path).parts
    if not parts or "/".join(parts) != path or any(part in ("..", SPOOL_FOLDER) or set(part) & set("\\:\0") for part in parts):
        return None
    at = folder
    for part in parts:
        at = at / part
        if at.is_symlink():
            return None
    return _found(at) if at.is_relative_to(folder) else None


def _files_below(folder: Path) -> Iterator[FoundFile]:
    """Files in a folder and below it; no link is followed, and no spool looked into."""
    waiting, seen = [str(folder)], 0
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > _MOST_ENTRIES:
                        return
                    if entry.is_symlink() or entry.name == SPOOL_FOLDER:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif (found := _entry(entry)) is not None:
                        yield found
        except OSError:
            continue


def _entry(entry: os.DirEntry[str]) -> FoundFile | None:
    """None where it is no file, or not any more: whoever saves renames and removes meanwhile."""
    try:
        facts = entry.stat(follow_symlinks=False)
        return FoundFile(Path(entry.path), facts.st_size, facts.st_mtime) if entry.is_file(follow_symlinks=False) else None
    except OSError:
        return None
