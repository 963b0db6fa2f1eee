"""ComfyUI's own folders, which may be changed while it runs."""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class ComfyFolders(Mapping[str, Path]):
    """``input``, ``output`` and ``temp`` -> where they are now.

    Args:
        folder_paths: ComfyUI's module.
    """

    def __init__(self, folder_paths: Any) -> None:
        self._find = {
            "input": folder_paths.get_input_directory,
            "output": folder_paths.get_output_directory,
            "temp": folder_paths.get_temp_directory,
        }

    def __getitem__(self, name: str) -> Path:
        return Path(os.path.abspath(self._find[name]()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._find)

    def __len__(self) -> int:
        return len(self._find)
