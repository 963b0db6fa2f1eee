"""Which field of a worker's settings keeps it from starting, by what was said of its end; in the words of the page's form."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Repair:
    """What is to be changed."""

    field: str = ""
    """As `agent.configuration.WorkerConfiguration` calls it; empty: nothing, as far as is known."""
    remedy: str = ""


NONE = Repair()
_VARIABLE = re.compile(r"\b(?:COMFYUI_PATH|DC_COMFYUI_PYTHON|DC_DEVICE): ")
_MODULE = re.compile(r"No module named '?([\w.]+)|ComfyUI needs ([\w.]+), which")
_AGAIN = "it starts again"
"""What an engine's link says of what comes next."""
_ARGUMENTS = re.compile(
    r"error: (?:unrecognized arguments|argument |ambiguous option|the following arguments)|expected (?:one|at least one) argument"
)
_DEVICE = re.compile(
    r"is not on this host, which has|is not among the \d+ devices|cannot use (?:cuda|xpu|mps)|finds \w+ device of|DC_DEVICE"
)
_TORCH = re.compile(r"torch \S+.* cannot use")


def repair_of(reason: str, remedy: str = "", devices: Sequence[str] = ()) -> Repair:
    """What a worker that does not start for this reason needs.

    Args:
        reason: as its agent or itself says it.
        remedy: the same, of what to do.
        devices: of its host.
    """
    if "COMFYUI_PATH" in reason or "is not ComfyUI's folder" in reason:
        remedy = "press “Settings” and choose “ComfyUI's folder”: the one with main.py and nodes.py; empty: the one that its computer uses"
        return Repair("comfyui_path", remedy)
    if "DC_COMFYUI_PYTHON" in reason:
        return Repair("comfyui_python", "press “Settings” and choose “Python of ComfyUI”; empty: the one in ComfyUI's own folder")
    if missing := _MODULE.search(reason):
        said = remedy.partition(_AGAIN)[0].strip(" ;")
        install = said if said.startswith("run: ") else f"install {missing[1] or missing[2]} for its Python"
        where = "the one that has ComfyUI's packages"
        return Repair("comfyui_python", f"{install}, or press “Settings” and choose “Python of ComfyUI”: {where}")
    if _ARGUMENTS.search(reason):
        return Repair("comfyui_args", "press “Settings” and correct “Extra arguments of ComfyUI”: it does not take what stands there")
    if _DEVICE.search(reason):
        known = f": its computer has {', '.join(devices)}" if devices else ""
        otherwise = ", or install for it a torch that can use this one" if _TORCH.search(reason) else ""
        return Repair("device", f"press “Settings” and choose another device{known}{otherwise}")
    return NONE


def without_variable(reason: str) -> str:
    """The same without the environment variable that the field stands for: whoever reads it has set none."""
    return _VARIABLE.sub("", reason)
