"""What the hash of a job says of it, without the long texts that lie there too."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from distributed_comfy.state.records import JobState

FIELDS = (
    "state", "parked", "paused", "running", "done", "total", "failed", "reason", "stuck_ms", "submitter", "base", "title", "host",
    "created_ms", "ended_ms", "fatal", "tiles", "tiles_done", "prepare", "last", "retried_ms",
)  # fmt: skip
"""All that `job_state` reads."""


def row_of(values: Sequence[str | None]) -> dict[str, str]:
    """The fields that are there, from what HMGET gives for `FIELDS`."""
    return {name: value for name, value in zip(FIELDS, values, strict=True) if value is not None}


def fatal_error(fatal: str | None, errors: Mapping[str, str]) -> dict[str, Any] | None:
    """The error that ended a job, from those of its items: the one that is said to have, else that of the first; None where it is none."""
    if not errors:
        return None
    try:
        found = json.loads(errors[fatal if fatal is not None and fatal in errors else min(errors, key=int)])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def job_state(fields: Mapping[str, str], error: dict[str, Any] | None) -> JobState:
    """A job as its hash has it.

    Args:
        fields: at least those of `FIELDS` that are there.
        error: wire form of the error that ended it.
    """

    def number(name: str) -> int:
        return int(float(fields.get(name) or 0))

    stored = fields["state"]
    shown: Literal["pending", "running", "paused", "parked", "done", "failed", "cancelled"]
    if stored != "active":
        shown = cast('Literal["done", "failed", "cancelled"]', stored)
    elif number("parked"):
        shown = "parked"
    elif number("paused"):
        shown = "paused"
    else:
        shown = "running" if number("running") or number("done") else "pending"
    reason = "its owner is gone; `distributed-comfy jobs attach` takes it over" if shown == "parked" else fields.get("reason", "")
    if stored == "active" and fields.get("stuck_ms"):
        reason = "its results leave no room for more in the blob store; forget() some of them, or raise DC_BYTES_IN_FLIGHT"
    counts = {name: number(name) for name in ("total", "running", "done", "failed")}
    counts["pending"] = counts["total"] - counts["running"] - counts["done"] - counts["failed"]
    return JobState(
        shown,
        error,
        reason,
        counts,
        fields.get("submitter", ""),
        number("base"),
        fields.get("title", ""),
        fields.get("host", ""),
        number("created_ms"),
        number("ended_ms"),
        int(fields.get("fatal", -1)),
        number("tiles"),
        number("tiles_done"),
        sum(fields.get(name, "") != "" for name in ("prepare", "last")),
        number("retried_ms"),
    )
