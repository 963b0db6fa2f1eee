"""A host with GPUs where there is none: its driver's tool, what CUDA shows a process by its variables, and what torch says about that.

The processes are real: a ComfyUI computes on the CPU while its torch describes GPUs, and engines are started as for GPUs, which they do not
find.  What each of them would see follows from its variables by the rules of CUDA's programming guide.
"""
from __future__ import annotations

import json
import os
import stat
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

NAME = "gpu_host"
_FILE = "gpu_host.json"


@dataclass(frozen=True)
class Card:
    """A GPU; cards stand in the order of the bus, which is the driver's."""

    uuid: str
    model: str
    speed: int
    bus_id: str


def visible(cards: Sequence[Card], environment: Mapping[str, str]) -> list[str]:
    """Ids of what a process with these variables sees, in CUDA's order."""
    by_bus = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    ordered = list(cards) if by_bus else sorted(cards, key=lambda card: -card.speed)
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return [card.uuid for card in ordered]
    found: list[str] = []
    for part in (part.strip() for part in wanted.split(",")):
        if part.startswith("MIG-"):
            return [part]  # a process sees one instance, and nothing beside it
        named = [card.uuid for card in ordered if part.startswith("GPU-") and card.uuid.startswith(part)]
        numbered = [ordered[int(part)].uuid] if part.isdigit() and int(part) < len(ordered) else []
        if not named and not numbered:
            break
        found += named or numbered
    return found


def install(cards: Sequence[Card], base: Path, folder: Path) -> dict[str, str]:
    """Put the GPUs into a host; the variables with which its ComfyUI is to be started.

    Args:
        cards: of the host.
        base: base directory of the ComfyUI.
        folder: for the tool.
    """
    (folder / "bin").mkdir(parents=True)
    rows = "\n".join(f"{number}, {card.uuid}, {card.model}, 24564, 0000{card.bus_id}" for number, card in enumerate(cards))
    listed = "\n".join(f"GPU {number}: {card.model} (UUID: {card.uuid})" for number, card in enumerate(cards))
    tool = folder / "bin" / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\ncase "$*" in\n*--query-gpu=*) cat <<E\n{rows}\nE\n;;\n*) cat <<E\n{listed}\nE\n;;\nesac\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    pack = base / "custom_nodes" / NAME
    pack.mkdir()
    (pack / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (pack / _FILE).write_text(json.dumps([asdict(card) for card in cards]))
    (pack / f"{NAME}.py").write_text(Path(__file__).read_text())
    (pack / "prestartup_script.py").write_text(
        f"import pathlib, sys\nfolder = pathlib.Path(__file__).parent\nsys.path.insert(0, str(folder))\n"
        f"if 'main.py' in sys.argv[0]:\n    import {NAME}\n    {NAME}.describe_gpus(folder / {_FILE!r})\n"
    )
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def describe_gpus(file: Path) -> None:
    """Let torch say what it would say on that host, and ComfyUI that it computes on the first GPU that it sees."""
    import comfy.model_management
    import torch

    cards = {facts["uuid"]: Card(**facts) for facts in json.loads(file.read_text())}

    def seen() -> list[str]:
        return visible(list(cards.values()), os.environ)

    def properties(device: Any) -> Any:
        uuid = seen()[device if isinstance(device, int) else torch.device(device).index]
        model = cards[uuid].model if uuid in cards else "MIG 1g.24gb"
        return types.SimpleNamespace(uuid=uuid.partition("-")[2], name=model, total_memory=24564 * 2**20)

    class Version(types.ModuleType):
        """Libraries beside torch look at this too, when they are loaded, and then look for what only a build for GPUs has."""

        cuda = property(lambda self: "12.8" if "distributed_comfy.comfyui.devices" in sys.modules else None)

    del torch.version.cuda
    torch.version.__class__ = Version
    torch.cuda.device_count = lambda: len(seen())
    torch.cuda.get_device_properties = properties
    comfy.model_management.get_torch_device = lambda: torch.device("cuda", 0)


def engines(processes: Sequence[psutil.Process]) -> dict[int, dict[str, str]]:
    """Variables of each engine among these, by pid; one lives for seconds, until it misses its GPU."""
    found = {}
    for process in processes:
        try:
            if any(word.endswith("boot.py") for word in process.cmdline()):
                found[process.pid] = process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended meanwhile
            continue
    return found
