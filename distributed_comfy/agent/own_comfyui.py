"""Whether the ComfyUI that a change to a worker names is on this host; only its agent can tell."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed_comfy.agent.configuration import WorkerConfiguration, relative_to
from distributed_comfy.engine.locate import find_comfyui, find_interpreter
from distributed_comfy.errors import SettingInvalid, WorkersFileWrong
from distributed_comfy.settings import Settings


def check_comfyui(worker: str, fields: Mapping[str, Any], settings: Settings, folder: Path) -> None:
    """Look at ComfyUI's folder and its interpreter, where they are to be others.

    Args:
        worker: its name, for messages.
        fields: that are to be changed, as they came.
        settings: of the agent.
        folder: from which relative paths are meant.
    Raises:
        WorkersFileWrong: says of the first one what it must be.
    """
    said = {name: value for name in ("comfyui_path", "comfyui_python") if isinstance(value := fields.get(name), str) and value}
    place = next(iter(said), "")
    try:
        there = relative_to(WorkerConfiguration().model_copy(update=said), folder)
        if "comfyui_path" in said:
            find_comfyui(settings.model_copy(update={"comfyui_path": Path(there.comfyui_path)}))
        if "comfyui_python" in said:
            place = "comfyui_python"
            find_interpreter(settings.model_copy(update={"comfyui_python": there.comfyui_python}), folder)
    except (SettingInvalid, OSError, RuntimeError, ValueError) as error:  # what is no path at all, too, and what this user may not see
        reason = f"cannot be this on host {settings.host_name}: {_in_words(error)}"
        raise WorkersFileWrong(source="workers", place=f"workers.{worker}.{place}", reason=reason) from error


def _in_words(error: Exception) -> str:
    if isinstance(error, SettingInvalid):
        return str(error.fields["reason"])
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
