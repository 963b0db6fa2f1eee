"""Errors for people and scripts: one clear line with the remedy, the node's own traceback, the exit status."""
from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from distributed_comfy.cli.output import Output
from distributed_comfy.errors import DistributedComfyError, JobFailed, NodeFailed, from_wire

log = logging.getLogger(__name__)

_FRAMES = 3
"""Of a traceback, the innermost."""


def report_error(output: Output, error: DistributedComfyError) -> int:
    """Show the error that ends a command, as text and, where that was asked for, as JSON; its exit status."""
    log.debug("the error in full", exc_info=error)
    show_error(output, error)
    output.result({"error": error_json(error)})
    return error.exit_code


def show_error(output: Output, error: DistributedComfyError) -> None:
    """Say why the command failed."""
    output.complain(str(error))
    for line in details(error):
        output.remark(f"  {line}")


def details(error: DistributedComfyError) -> list[str]:
    """What a person needs beside the sentence: which node it was, and the end of the traceback on the worker."""
    node_error = cause(error)
    if not isinstance(node_error, NodeFailed):
        return []
    facts = node_error.fields
    where = f", item {error.fields['index']}, worker {error.fields['worker']}" if isinstance(error, JobFailed) else ""
    lines = [f"node {facts['node_id']} ({facts['class_type']}){where}: {facts['exception_type']}: {facts['exception_message']}"]
    trace = _innermost(facts.get("traceback", ()))
    return lines + (["on the worker, innermost last:", *trace] if trace else [])


def _innermost(traceback: str | Sequence[str]) -> list[str]:
    """The last frames of a traceback, given as text or as Python's list of entries: file, line and code, without lines that underline."""
    lines = (traceback if isinstance(traceback, str) else "".join(f"{entry.rstrip()}\n" for entry in traceback)).splitlines()
    lines = [line for line in lines if line.strip(" ~^")]
    begins = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    return lines[begins[-_FRAMES:][0] :] if begins else lines[-2 * _FRAMES :]


def cause(error: DistributedComfyError) -> DistributedComfyError:
    """The error of the item that made the job fail; any other error itself."""
    wire = error.fields.get("error")
    return from_wire(wire) if isinstance(error, JobFailed) and isinstance(wire, dict) else error


def error_json(error: DistributedComfyError | None) -> dict[str, Any] | None:
    """An error as JSON values: code, message, facts."""
    if error is None:
        return None
    facts = json.loads(json.dumps(error.fields, default=str))
    return {"code": error.code, "message": str(error), "exit_code": error.exit_code, "fields": facts}
