"""Brings the files that a prompt loads into the blob store, by content, before its job is queued."""
from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from distributed_comfy.errors import FileUnreadable, InputFileMissing
from distributed_comfy.messages import FileRef, InputFile
from distributed_comfy.planning.files import FileReference
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.transport.files import FileSource, store_file

log = logging.getLogger(__name__)


def find_input_file(reference: FileReference, folders: Sequence[Path]) -> Path:
    """The file on this host that a node names: an absolute path, or relative to one of ``folders``.

    Raises:
        InputFileMissing: it is in none of them.
    """
    name = reference.name.replace("\\", "/")
    if Path(reference.name).is_absolute() and Path(reference.name).is_file():
        return Path(reference.name)
    for folder in folders:
        path = folder / name
        if path.is_file():
            return path
    raise InputFileMissing(node_id=reference.node_id, name=reference.name, folders=", ".join(str(folder) for folder in folders))


def input_folders(prompt_folder: Path, comfyui_path: Path | None) -> dict[str, list[Path]]:
    """Where files of each of ComfyUI's folders are looked for on this host, first to last."""
    beside = [prompt_folder, Path.cwd()]
    if comfyui_path is None:
        return dict.fromkeys(("input", "output", "temp"), beside)
    return {name: [*beside, comfyui_path / name] for name in ("input", "output", "temp")}


class JobInputs:
    """The input files of one job: found at once, stored now and again if the blob store loses them."""

    def __init__(self, store: BlobStore, job_id: str, limit_bytes: int) -> None:
        self._store = store
        self._job_id = job_id
        self._limit_bytes = limit_bytes
        self._paths: dict[str, Path] = {}

    def add(self, references: Sequence[FileReference], folders: dict[str, list[Path]]) -> tuple[InputFile, ...]:
        """Store every referenced file.

        Raises:
            InputFileMissing: named with node and folders; nothing is queued then.
        """
        found = [(reference, find_input_file(reference, folders[reference.folder])) for reference in references]
        return tuple(InputFile(reference.node_id, reference.input, self._store_one(path), reference.value) for reference, path in found)

    def ensure(self, inputs: Sequence[InputFile]) -> None:
        """Store again what the blob store has lost; a file that is gone meanwhile is missed only by items that still need it."""
        blobs = [entry.file.blob for entry in inputs if entry.file.blob in self._paths]
        for blob, there in zip(blobs, self._store.exists(blobs), strict=True):
            if not there:
                try:
                    self._store_one(self._paths[blob])
                except FileUnreadable as error:
                    log.warning("an input file was lost and cannot be stored again: %s", error)

    def _store_one(self, path: Path) -> FileRef:
        number = list(self._paths.values()).index(path) if path in self._paths.values() else len(self._paths)
        source = FileSource(path, path.name, folder="input")
        reference = store_file(
            self._store, source, blob_name=f"{self._job_id}/input/{number}", job_id=self._job_id, limit_bytes=self._limit_bytes
        )
        self._paths[reference.blob] = path
        return reference
