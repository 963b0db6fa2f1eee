"""The small record that Celery's result API reads for an item: its state, never its pixels."""
from __future__ import annotations

import json
from typing import Any

from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.messages import ItemResult, item_id


def success(job_id: str, index: int, result: ItemResult) -> str:
    """Task meta of a finished item; the result backend finds the pixels by job and index."""
    summary = {"job": job_id, "index": index, "worker": result.worker, "seconds": round(result.seconds, 3)}
    return _meta(job_id, index, "SUCCESS", summary, None)


def failure(job_id: str, index: int, error: DistributedComfyError) -> str:
    """Task meta of a failed item, with the error in the form Celery's clients raise."""
    return _meta(job_id, index, "FAILURE", _exception(error), error.fields.get("traceback"))


def template_failure(error: DistributedComfyError) -> str:
    """Task meta of an item whose worker is lost; written by the reaper, which learns the item only inside its script."""
    return _meta("", -1, "FAILURE", _exception(error), None)


def template_cancelled() -> str:
    """Task meta of an item that will not run because its job ended; written by the script that ends the job."""
    exception = {"exc_type": "TaskRevokedError", "exc_message": ["cancelled"], "exc_module": "celery.exceptions"}
    return _meta("", -1, "REVOKED", exception, None)


def _exception(error: DistributedComfyError) -> dict[str, Any]:
    return {"exc_type": type(error).__name__, "exc_message": [str(error)], "exc_module": type(error).__module__}


def _meta(job_id: str, index: int, status: str, result: Any, traceback: Any) -> str:
    name = item_id(job_id, index) if job_id else ""
    text = "".join(traceback) if isinstance(traceback, list) else traceback
    return json.dumps({"task_id": name, "status": status, "result": result, "traceback": text, "children": [], "parent_id": None})
