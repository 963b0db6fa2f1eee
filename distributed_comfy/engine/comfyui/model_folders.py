"""Which files lie in ComfyUI's model folders, and which input of a node class shows the files of which folder."""
from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from distributed_comfy.engine.catalogue import NO_MODELS, folder_shown
from distributed_comfy.engine.comfyui.choices import asked

log = logging.getLogger(__name__)


class FolderListings:
    """Reads the folders, and notes which of them node classes list while they declare their inputs."""

    def __init__(self, folder_paths: Any) -> None:
        """Args:
        folder_paths: ComfyUI's module.
        """
        self._folder_paths = folder_paths
        self._files: dict[str, list[str]] = {}
        self._asked: list[str] = []

    def read(self) -> dict[str, list[str]]:
        """Model folder -> names of its files; a folder that cannot be read has none."""
        names = [name for name in list(self._folder_paths.folder_names_and_paths) if name not in NO_MODELS]
        self._files = {name: asked(name, lambda folder: list(self._folder_paths.get_filename_list(folder)), []) for name in names}
        self._asked.clear()
        return self._files

    @contextmanager
    def noted(self) -> Iterator[None]:
        """While the context lasts, each listing that this thread asks for is noted; others may be running a prompt."""
        listing, us = self._folder_paths.get_filename_list, threading.get_ident()

        def note(folder_name: str, *rest: Any, **more: Any) -> Any:
            if threading.get_ident() == us:
                self._asked.append(self._usual_name(folder_name))
            return listing(folder_name, *rest, **more)

        self._folder_paths.get_filename_list = note
        try:
            yield
        finally:
            self._folder_paths.get_filename_list = listing

    def take(self) -> list[str]:
        """The folders that were listed since the last call, in order."""
        taken = list(dict.fromkeys(self._asked))
        self._asked.clear()
        return taken

    def shown_by(self, values: Sequence[str], folders: Sequence[str]) -> str:
        """The folder whose files an input shows, see `folder_shown`.

        Args:
            values: that the input offers.
            folders: that its class listed; none where it got the function before we noted.
        """
        return folder_shown(values, self._files, folders)

    def _usual_name(self, folder_name: str) -> str:
        """Older names of some folders are still in use."""
        usual = getattr(self._folder_paths, "map_legacy", None)
        return str(usual(folder_name)) if usual else folder_name
