"""Errors as the panel tells them: a code, what is wrong, and what to do about it."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis

from distributed_comfy.errors import (
    ClusterUnavailable,
    DistributedComfyError,
    InviteUnknown,
    JobFailed,
    JobOwned,
    JobStateInvalid,
    JobUnknown,
    NodeFailed,
    NoMaster,
    OrderRefused,
    PictureNotHere,
    ResultNotHere,
    SettingInvalid,
    SettingsWrong,
    WorkerFieldsWrong,
    WorkersFileWrong,
    WorkerUnknown,
    all_errors,
    from_wire,
)
from distributed_comfy.settings import redact_url

_BETWEEN = "; "
"""Stands before the remedy, in every sentence that has one."""
_UNKNOWN = (WorkerUnknown, JobUnknown, InviteUnknown, ResultNotHere, PictureNotHere, NoMaster)
_CONFLICTS = (OrderRefused, JobStateInvalid, JobOwned)
_TRACE_CHARACTERS = 20_000


def split_remedy(error: DistributedComfyError) -> tuple[str, str]:
    """What is wrong, and what to do: the sentence's own last part, else what follows the first semicolon in a fact."""
    template, text = error.sentence, str(error)
    option = str(error.fields.get("name", "")) if isinstance(error, SettingInvalid) else ""
    if option.startswith("--"):  # of the command line, which a page does not have
        return split_text(text.removeprefix(f"{option}: "))
    before, between, after = template.rpartition(_BETWEEN)
    if between and before:
        try:
            remedy = after.format(**error.fields)
        except (LookupError, ValueError, AttributeError):
            remedy = ""
        if remedy and text.endswith(remedy):
            return text[: -len(remedy) - len(_BETWEEN)], remedy
    return split_text(text)


def split_text(text: str) -> tuple[str, str]:
    """The same for a text of which only the words are known."""
    wrong, _, remedy = text.partition(_BETWEEN)
    return wrong, remedy


def split_coded(code: str, text: str) -> tuple[str, str]:
    """The same for the text of an error of this code, of which more than one fact may have a semicolon."""
    remedy = next((each.sentence for each in all_errors() if each.code == code), "").rpartition(_BETWEEN)[2]
    if remedy and "{" not in remedy and text.endswith(_BETWEEN + remedy):
        return text[: -len(remedy) - len(_BETWEEN)], remedy
    return split_text(text)


def told(error: DistributedComfyError | redis.RedisError) -> dict[str, Any]:
    """An error as `openapi.json` has it."""
    if isinstance(error, redis.RedisError):
        reason = redact_url(str(error)) or type(error).__name__
        return {"code": "redis_unreachable", "message": f"Redis: {reason}", "remedy": "look whether the server runs and can be reached"}
    message, remedy = split_remedy(error)
    found: dict[str, Any] = {"code": error.code, "message": message, "remedy": remedy}
    if isinstance(error, (WorkerFieldsWrong, SettingsWrong)):
        found["fields"] = dict(error.fields.get("wrong") or {})
    elif isinstance(error, WorkersFileWrong):
        found["fields"] = {_field(str(error.fields.get("place", ""))): str(error.fields.get("reason", ""))}
    return found


def status_of(error: DistributedComfyError | redis.RedisError) -> int:
    """The HTTP status of an answer with it."""
    if isinstance(error, (redis.RedisError, ClusterUnavailable)):
        return 503
    if isinstance(error, _UNKNOWN):
        return 404
    return 409 if isinstance(error, _CONFLICTS) else 400


def item_error(wire: Mapping[str, Any] | None, worker: str = "") -> dict[str, Any] | None:
    """Why an item failed, from the wire form of its error: with node and traceback where a node is to blame."""
    if not wire:
        return None
    try:
        return _item_error(dict(wire), worker)
    except Exception as error:  # noqa: BLE001 - the host that it comes from may have written anything
        reason = f"why it failed cannot be read ({type(error).__name__})"
        return {
            "code": "remote_error", "message": reason, "remedy": "look into the log of its worker", "worker": worker,
            "node_id": "", "node_class": "", "traceback": "",
        }  # fmt: skip


def _item_error(wire: dict[str, Any], worker: str) -> dict[str, Any]:
    error = from_wire(wire)
    inner = error.fields.get("error")
    cause = from_wire(inner) if isinstance(error, JobFailed) and isinstance(inner, dict) else error
    message, remedy = split_remedy(cause)
    facts = cause.fields if isinstance(cause, NodeFailed) else {}
    trace = facts.get("traceback") or ""
    return {
        "code": cause.code, "message": message, "remedy": remedy, "worker": str(wire.get("worker") or worker),
        "node_id": str(facts.get("node_id", "")), "node_class": str(facts.get("class_type", "")),
        "traceback": (trace if isinstance(trace, str) else "".join(f"{str(entry).rstrip()}\n" for entry in trace))[-_TRACE_CHARACTERS:],
    }  # fmt: skip


def _field(place: str) -> str:
    """``workers.pc1-cuda0.device`` is ``device`` to whoever fills in the form of that worker."""
    parts = place.split(".")
    return ".".join(parts[2:]) if parts[0] == "workers" and len(parts) > 2 else place
