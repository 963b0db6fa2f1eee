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

    @property
    def cannot_add_nodes(self) -> str:
        """Why nodes cannot be added to a prompt that runs; empty where they can."""
        return "runs with --cache-none, which takes no added nodes" if getattr(self.args, "cache_none", False) else ""

    @property
    def hides_metadata(self) -> bool:
        """Whether it was started so that files say nothing about how they were made."""
        return bool(getattr(self.args, "disable_metadata", False))

    def forget_progress(self, node_ids: tuple[str, ...]) -> None:
        """Tell the page no more how far nodes are that have run: with each step of one it is told of all that are known."""
        try:
            known = importlib.import_module("comfy_execution.progress").get_progress_state().nodes
        except (ImportError, AttributeError):  # an older version
            return
        for node_id in node_ids:
            known.pop(node_id, None)

    def sampling(self) -> Any:
        """The class that lists ``SAMPLERS`` and ``SCHEDULERS``, those of node packs among them."""
        return importlib.import_module("comfy.samplers").KSampler

    def executing(self) -> tuple[str, str]:
        """Ids of the prompt and the node that run in this context; the node's is empty where ComfyUI does not tell it."""
        try:
            context = importlib.import_module("comfy_execution.utils").get_executing_context()
        except (ImportError, AttributeError):  # an older version
            context = None
        if context is not None:
            return str(context.prompt_id), str(context.node_id)
        return str(getattr(self.server, "last_prompt_id", "")), ""

    def progress_bar(self, total: int, node_id: str) -> Any:
        """A bar at a node; its `update_absolute` raises where the prompt was interrupted."""
        return importlib.import_module("comfy.utils").ProgressBar(total, node_id=node_id)

    @property
    def client_id(self) -> str | None:
        """The page or script whose prompt runs, or ran last; None where it has no websocket."""
        found = self.server.client_id
        return None if found is None else str(found)

    def show_text(self, text: str, node_id: str, client_id: str) -> None:
        """Write a line at a node, for one client."""
        show = getattr(self.server, "send_progress_text", None)
        if show is not None:
            show(text, node_id, client_id)

    @property
    def preview_side_px(self) -> int:
        """Longest side of the previews of latents that its samplers show."""
        return int(getattr(self.args, "preview_size", 512))

    def device(self) -> str:
        """What it computes on, as a worker would be told: ``cuda:0``, ``cpu``."""
        found = self.model_management.get_torch_device()
        return str(found) if found.index is not None or found.type == "cpu" else f"{found.type}:0"

    @property
    def folders(self) -> dict[str, Path]:
        """``input``, ``output`` and ``temp``."""
        paths = self.folder_paths
        found = {"input": paths.get_input_directory(), "output": paths.get_output_directory(), "temp": paths.get_temp_directory()}
        return {name: Path(folder) for name, folder in found.items()}

    @property
    def user_folder(self) -> Path | None:
        """Where it keeps what its one user saves; None in older versions, and with ``--multi-user``: nobody says who sent a prompt."""
        find = getattr(self.folder_paths, "get_user_directory", None)
        return Path(find()) / "default" if find is not None and not getattr(self.args, "multi_user", False) else None


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
