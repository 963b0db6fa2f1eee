"""Brings the files that a prompt loads into the blob store, by content, before its job is queued."""
from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from distributed_comfy.errors import FileUnreadable, InputFileMissing, InputFileOutside
from distributed_comfy.messages import FileRef, InputFile
from distributed_comfy.planning.files import FileReference
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.transport.files import FileSource, store_file

log = logging.getLogger(__name__)

AnyPath = TypeVar("AnyPath", bound=PurePath)
_FOLDERS = ("input", "output", "temp")


@dataclass(frozen=True)
class InputFolders:
    """Where the files that a prompt names are looked for on this host."""

    folders: Mapping[str, Sequence[Path]]
    """ComfyUI's ``input``, ``output`` and ``temp`` -> folders on this host, first to last."""
    only_these: bool
    """No file from elsewhere is taken: whoever may post a prompt to a ComfyUI need not be one who may read its user's files."""

    @classmethod
    def of_submitter(cls, prompt_folder: Path, comfyui_path: Path | None) -> InputFolders:
        """For who submits a prompt as a user of this host: beside the prompt, and any file that is named with its path."""
        beside = [prompt_folder, Path.cwd()]
        below = [] if comfyui_path is None else [comfyui_path]
        return cls({name: [*beside, *(path / name for path in below)] for name in _FOLDERS}, only_these=False)

    @classmethod
    def of_comfyui(cls, folders: Mapping[str, Path]) -> InputFolders:
        """For prompts that a ComfyUI was sent: its folders, and nothing outside of them."""
        return cls({name: [folder] for name, folder in folders.items()}, only_these=True)

    def find(self, reference: FileReference) -> Path:
        """The file that a node names: by its path, or relative to one of the folders.

        Raises:
            InputFileMissing: it is in none of them.
            InputFileOutside: it is outside of them, and `only_these` are searched; whether there is one is not looked at.
        """
        folders, name = self.folders[reference.folder], reference.name.replace("\\", "/")
        places: list[Path] = [folder / name for folder in folders]
        if self.only_these:
            places = [place for folder in folders if (place := place_within(folder, name)) is not None]
            if not places:
                raise InputFileOutside(node_id=reference.node_id, name=reference.name, folders=_listed(folders))
        elif Path(reference.name).is_absolute():
            places = [Path(reference.name), *places]
        for place in places:
            if os.path.isfile(place):  # unlike Path's, false for a name that no file can have
                return place
        raise InputFileMissing(node_id=reference.node_id, name=reference.name, folders=_listed(folders))


def place_within(folder: AnyPath, name: str) -> AnyPath | None:
    """``name`` in ``folder``; None where it leads out.

    A link that somebody made inside is followed, as ComfyUI follows it.  So a step back is refused wherever it is: behind a link, it is not
    the step that the words say.  What Windows would take for one (dots and spaces) counts as one.

    Args:
        folder: absolute.
        name: relative to it, or absolute.
    """
    place = folder / name
    if any(not part.strip(". ") for part in type(folder)(name).parts):
        return None
    return place if place.is_relative_to(folder) else None


def _listed(folders: Sequence[Path]) -> str:
    return ", ".join(str(folder) for folder in folders)


class JobInputs:
    """The input files of one job: found at once, stored now and again if the blob store loses them."""

    def __init__(self, store: BlobStore, job_id: str, limit_bytes: int) -> None:
        self._store = store
        self._job_id = job_id
        self._limit_bytes = limit_bytes
        self._paths: dict[str, Path] = {}

    def add(self, references: Sequence[FileReference], folders: InputFolders) -> tuple[InputFile, ...]:
        """Store every referenced file.

        Raises:
            InputFileMissing, InputFileOutside: named with node and folders; nothing is queued then.
        """
        found = [(reference, folders.find(reference)) for reference in references]
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
