"""The running ComfyUI as the pack sees it: its modules and its server, looked up in one place."""
from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ComfyHost:
    """The ComfyUI whose process this is."""

    server: Any
    """The ``PromptServer``."""
    nodes: Any
    execution: Any
    folder_paths: Any
    model_management: Any
    args: Any
    """The parsed arguments."""
    root: Path
    """Folder of its ``main.py``."""
    version: str

    def blocker(self) -> Any:
        """The value that keeps every node behind it from running."""
        return importlib.import_module("comfy_execution.graph_utils").ExecutionBlocker(None)

    def sampling(self) -> Any:
        """The class that lists ``SAMPLERS`` and ``SCHEDULERS``, those of node packs among them."""
        return importlib.import_module("comfy.samplers").KSampler


def read_host() -> ComfyHost:
    """The ComfyUI of this process, which is loading its custom nodes or has done so.

    Raises:
        ImportError: this process is no ComfyUI.
    """
    folder_paths = importlib.import_module("folder_paths")
    return ComfyHost(
        server=importlib.import_module("server").PromptServer.instance,
        nodes=importlib.import_module("nodes"),
        execution=importlib.import_module("execution"),
        folder_paths=folder_paths,
        model_management=importlib.import_module("comfy.model_management"),
        args=importlib.import_module("comfy.cli_args").args,
        root=Path(str(folder_paths.__file__)).resolve().parent,
        version=str(importlib.import_module("comfyui_version").__version__),
    )
