"""The small record that Celery's result API reads for an item: its state, never its pixels.

It travels through pub/sub to everybody who waits for the item, so every text in it is bounded; the table keeps errors whole.
"""
from __future__ import annotations

import json
from typing import Any

from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.messages import ItemResult, item_id

_TEXT_LIMIT = 4000
_TRACEBACK_LIMIT = 20_000
_TRACEBACK = "traceback"


def success(job_id: str, index: int, result: ItemResult) -> str:
    """Task meta of a finished item; the result backend finds the pixels by job and index."""
    summary = {"job": job_id, "index": index, "worker": result.worker, "seconds": round(result.seconds, 3)}
    return _meta(job_id, index, "SUCCESS", summary, None)


def failure(job_id: str, index: int, error: DistributedComfyError) -> str:
    """Task meta of a failed item, with the error in the form Celery's clients raise."""
    trace = error.fields.get(_TRACEBACK)
    text = "".join(map(str, trace)) if isinstance(trace, list) else trace
    return _meta(job_id, index, "FAILURE", _exception(error), str(text)[-_TRACEBACK_LIMIT:] if text else None)


def template_failure(error: DistributedComfyError) -> str:
    """Task meta of an item whose worker is lost; written by the reaper, which learns the item only inside its script."""
    return _meta("", -1, "FAILURE", _exception(error), None)


def template_cancelled() -> str:
    """Task meta of an item that will not run because its job ended; written by the script that ends the job."""
    exception = {"exc_type": "TaskRevokedError", "exc_message": ["cancelled"], "exc_module": "celery.exceptions"}
    return _meta("", -1, "REVOKED", exception, None)


def _exception(error: DistributedComfyError) -> dict[str, Any]:
    """What stock Celery reads, and the error's own wire form, from which our backend makes the error again with its fields."""
    fields = {name: _bounded(value) for name, value in error.fields.items() if name != _TRACEBACK}
    wire = {"code": error.code, "fields": fields}
    return {"exc_type": type(error).__name__, "exc_message": [_bounded(str(error))], "exc_module": type(error).__module__, "wire": wire}


def _bounded(value: Any) -> Any:
    """The value, or the beginning of its text."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) <= _TEXT_LIMIT:
        return value if isinstance(value, str) else json.loads(text)
    return f"{text[:_TEXT_LIMIT]}..."


def _meta(job_id: str, index: int, status: str, result: Any, traceback: Any) -> str:
    name = item_id(job_id, index) if job_id else ""
    return json.dumps({"task_id": name, "status": status, "result": result, "traceback": traceback, "children": [], "parent_id": None})
