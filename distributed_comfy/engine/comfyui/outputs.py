"""What a run left behind: ui results as plain values, and the files they name."""
from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed_comfy.engine.base import OutputFile
from distributed_comfy.engine.folders import WorkFolders, set_aside, written_files

log = logging.getLogger(__name__)


def plain_outputs(history: Mapping[str, Any], cached: frozenset[str], folders: WorkFolders) -> dict[str, Any]:
    """The ui dicts of a run as plain JSON values.

    Args:
        history: ComfyUI's history entry: ``outputs`` and ``meta`` by node id.
        cached: nodes that did not run; what they say is kept unless it names a file that is gone.
        folders: where the files would be.
    """
    kept: dict[str, Any] = {}
    for node_id, ui in history.get("outputs", {}).items():
        plain = json.loads(json.dumps(ui, default=str))
        if _origin(history, node_id) not in cached or all(file.path.is_file() for file in written_files({node_id: plain}, folders)):
            kept[str(node_id)] = plain
    return kept


def writing_expanders(history: Mapping[str, Any]) -> set[str]:
    """Nodes of the prompt that expanded into graphs whose nodes name files."""
    outputs = history.get("outputs", {})
    return {_origin(history, node_id) for node_id, ui in outputs.items() if _origin(history, node_id) != node_id and _names_files(ui)}


def shown_nodes(history: Mapping[str, Any]) -> set[str]:
    """Nodes of the prompt that have a ui result, of their own or of a graph that they expanded into."""
    return {_origin(history, node_id) for node_id in history.get("outputs", {})}


def _names_files(ui: Any) -> bool:
    return bool(written_files({"": ui}, WorkFolders(Path())))


def _origin(history: Mapping[str, Any], node_id: str) -> str:
    """The node of the prompt that a ui result comes from: itself, or the node that expanded into it."""
    return str(history.get("meta", {}).get(node_id, {}).get("real_node_id", node_id))


def take_files(outputs: dict[str, Any], folders: WorkFolders, claim_id: str, *, unnamed: bool = False) -> tuple[OutputFile, ...]:
    """Set the files of a run aside, so that the next run of a prompt gives the same names and cannot write over them.

    Args:
        outputs: ui results.
        folders: of the worker.
        claim_id: of the run.
        unnamed: take what nodes wrote into ``output`` without naming it, too.
    Raises:
        OSError: a file cannot be moved.
    """
    there = []
    for file in written_files(outputs, folders):
        if file.path.is_file():
            there.append(file)
        else:  # a later node of the prompt may have taken it away
            log.info("node %s names %s, which is not there", file.node_id, file.path)
    if unnamed:
        there += _unnamed_files(folders, {file.path for file in there})
    return tuple(set_aside(there, folders.outgoing / claim_id))


def _unnamed_files(folders: WorkFolders, named: set[Path]) -> list[OutputFile]:
    found = sorted(path for path in folders.output.rglob("*") if path.is_file() and path not in named)
    return [OutputFile("", path, path.relative_to(folders.output).as_posix(), "output") for path in found]


def discard_files(history: Mapping[str, Any], folders: WorkFolders) -> None:
    """Delete what a run wrote before it failed."""
    for file in written_files(dict(history.get("outputs", {})), folders):
        file.path.unlink(missing_ok=True)
