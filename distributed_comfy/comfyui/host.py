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

    def current(self) -> tuple[str, str] | None:
        """Prompt and node in whose thread this is called; None outside of nodes."""
        context = importlib.import_module("comfy_execution.utils").get_executing_context()
        return (str(context.prompt_id), str(context.node_id)) if context is not None else None

    def is_running(self, prompt_id: str, node_id: str) -> bool:
        """Whether this ComfyUI runs the prompt, and this node of it has not come to its end."""
        running, _ = self.server.prompt_queue.get_current_queue_volatile()
        if all(str(item[1]) != prompt_id for item in running):
            return False
        progress = importlib.import_module("comfy_execution.progress").get_progress_state()
        entry = progress.nodes.get(node_id)
        return str(progress.prompt_id) == prompt_id and entry is not None and entry["state"].value != "finished"

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
