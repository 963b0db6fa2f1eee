"""What ComfyUI's history says about a prompt: the user's outputs and files as they would be without a claim, or the error."""
from __future__ import annotations

import json
import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distributed_comfy.engine.attach.captures import TAKEN_BY, file_entries, without_claim
from distributed_comfy.engine.base import OutputFile
from distributed_comfy.engine.endings import INTERRUPTED, node_failure
from distributed_comfy.engine.folders import WorkFolders, written_files
from distributed_comfy.errors import ComfyUIDropped, ItemError, OutOfMemory, WorkerLacks
from distributed_comfy.messages import RunRequest

log = logging.getLogger(__name__)

_PNG = b"\x89PNG\r\n\x1a\n"
_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")


def failure(event: str, facts: dict[str, Any], origin: Mapping[str, str], device: str, url: str) -> ItemError:
    """The error for an ending other than success, which nobody of this project asked for.

    Args:
        event: of the ending; empty where the history names none.
        facts: of that event.
        origin: node of the queued prompt -> node of the item's prompt.
        device: for the message.
        url: of ComfyUI, for the message.
    """
    node_id = str(facts.get("node_id", ""))
    if event == INTERRUPTED:
        return ComfyUIDropped(url=url, reason=f"it was interrupted there at node {node_id} ({facts.get('node_type', '')})")
    failed = node_failure(event, {**facts, "node_id": origin.get(node_id, node_id)})
    kind = failed.exception_type.rpartition(".")[2]
    # torch has no class for a CPU without memory, only this sentence of its allocator.
    if kind in _OUT_OF_MEMORY or (kind == "RuntimeError" and "can't allocate memory" in failed.exception_message):
        return OutOfMemory(device=device, **failed.fields)
    return failed


def without_value(facts: Mapping[str, Any], origin: Mapping[str, str]) -> str:
    """The sink that failed because no value, or None, came to the stock nodes in its place; empty where it was anything else."""
    given = facts.get("current_inputs") or {}
    nothing = any(given.get(name) in ([], [None]) for name in TAKEN_BY)
    return origin.get(str(facts.get("node_id")), "") if nothing else ""


def own_outputs(outputs: Mapping[str, Any], origin: Mapping[str, str], claim_id: str) -> dict[str, Any]:
    """The ui dicts of the item's own nodes, with files named as if the claim had no folder."""
    return {node_id: _without_claim(ui, claim_id) for node_id, ui in outputs.items() if node_id not in origin}


def fetch_files(
    outputs: Mapping[str, Any], origin: Mapping[str, str], request: RunRequest, fetch: Callable[[Mapping[str, Any]], Path]
) -> tuple[OutputFile, ...]:
    """The files that the item's own nodes name, each once; what is not there any more is left out, with a line in the log.

    Args:
        outputs: of the history.
        origin: its keys are our own nodes, whose files are not the user's.
        request: for claim and metadata.
        fetch: downloads a file.
    """
    there: list[OutputFile] = []
    for node_id, ui in outputs.items():
        for entry in file_entries(ui) if node_id not in origin else ():
            named = written_files({node_id: _without_claim({"": [entry]}, request.claim_id)}, WorkFolders(Path()))
            if not named or any((named[0].folder, named[0].name) == (file.folder, file.name) for file in there):
                continue
            try:
                path = fetch(entry)
            except WorkerLacks as error:
                log.info("node %s: %s", node_id, error)
                continue
            if path.suffix.lower() == ".png":
                restore_prompt(path, request.original_prompt)
            there.append(OutputFile(node_id, path, named[0].name, named[0].folder))
    return tuple(there)


def restore_prompt(path: Path, prompt: Mapping[str, Any]) -> None:
    """Put the user's prompt into the metadata of a PNG that has the one that was queued; pixels and other chunks stay as they are."""
    content = path.read_bytes()
    if not content.startswith(_PNG):
        return
    text = b"prompt\0" + json.dumps(prompt).encode()
    chunks = [text if kind == b"tEXt" and data.startswith(b"prompt\0") else data for kind, data in _chunks(content)]
    kinds = [kind for kind, _ in _chunks(content)]
    path.write_bytes(_PNG + b"".join(_chunk(kind, data) for kind, data in zip(kinds, chunks, strict=True)))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = len(_PNG)
    while start + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, start)
        yield content[start + 4 : start + 8], content[start + 8 : start + 8 + length]
        start += 12 + length


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _without_claim(ui: Any, claim_id: str) -> Any:
    """A ui dict with the folder of the claim taken out of the files that it names."""
    if isinstance(ui, list):
        return [_without_claim(entry, claim_id) for entry in ui]
    if not isinstance(ui, dict):
        return ui
    plain = {name: _without_claim(value, claim_id) for name, value in ui.items()}
    if isinstance(ui.get("filename"), str) and isinstance(ui.get("subfolder"), str):
        plain["subfolder"] = without_claim(ui["subfolder"], claim_id)
    return plain
