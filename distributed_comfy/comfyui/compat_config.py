"""Configuration in the words of ComfyUI-Distributed and in ours: workers with a CUDA device and a text of arguments, settings, options."""
from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from distributed_comfy.comfyui.options import Options
from distributed_comfy.comfyui.surroundings import for_workers
from distributed_comfy.errors import OptionWrong
from distributed_comfy.orchestrator.arguments import split_arguments
from distributed_comfy.state.records import HostRecord, HostWorker

OPTION_OF = {
    "debug": "debug", "auto_launch_workers": "auto_launch", "stop_workers_on_master_exit": "stop_workers",
    "master_delegate_only": "participate",
}  # fmt: skip
"""Setting there -> option here; the last one says the opposite."""
_OPPOSITE = "master_delegate_only"
_MOST_DEVICES = 256


def option_change(key: str, value: Any) -> tuple[str, Any]:
    """An option and its value, for a setting of `OPTION_OF` and its value.

    Raises:
        OptionWrong: the value is neither true nor false.
    """
    if not isinstance(value, bool):
        raise OptionWrong(name=key, reason=f"cannot be {str(value)[:100]!r}; it is true or false")
    return OPTION_OF[key], (not value if key == _OPPOSITE else value)


def fields_of(worker: Mapping[str, Any], *, socket_names: Collection[str]) -> tuple[dict[str, Any], bool | None]:
    """What a worker there is here, as fields of `agent.configuration.WorkerConfiguration`, and whether it is enabled.

    Name and port have no meaning: a new worker has its id for a name, and none listens anywhere.  Null takes a value away; then holds
    what holds for an imported worker without it: the first GPU, enabled, no arguments.

    Args:
        socket_names: what stands for this host in ``host``.
    Returns:
        The fields that are given, and ``enabled`` where that is.
    Raises:
        OptionWrong: a value makes no sense, or the worker is on another host.
    """
    host = worker.get("host")
    if (host is not None and str(host) not in socket_names) or worker.get("type") in ("remote", "cloud"):
        reason = "a worker of another host is invited: `distributed-comfy invite` prints the command to run there"
        raise OptionWrong(name="host", reason=reason)
    fields: dict[str, Any] = {}
    if "cuda_device" in worker:
        fields["device"] = device_of(worker["cuda_device"])
    if "extra_args" in worker:
        fields["comfyui_args"] = arguments_of(worker["extra_args"])[0]
    if "enabled" not in worker:
        return fields, None
    if not isinstance(worker["enabled"], (bool, type(None))):
        raise OptionWrong(name="enabled", reason="must be true or false, or null for the default")
    return fields, worker["enabled"] is not False


def device_of(number: Any) -> str:
    """The device of a CUDA number, which may be text; none is the first one.

    Raises:
        OptionWrong: it is no such number.
    """
    if number is None or number == "":
        return "cuda:0"
    text = str(number).strip()
    if isinstance(number, bool) or not (text.isascii() and text.isdecimal() and int(text) < _MOST_DEVICES):
        raise OptionWrong(name="cuda_device", reason=f"must be the number of a GPU (it is {text[:40]!r})")
    return f"cuda:{int(text)}"


def arguments_of(text: Any) -> tuple[list[str], list[str]]:
    """The arguments in a text that hold for a worker, and those that do not: a worker listens nowhere and has its device from elsewhere.

    Raises:
        OptionWrong: it is no text, or quotes are open.
    """
    if text is None:
        return [], []
    if not isinstance(text, str):
        raise OptionWrong(name="extra_args", reason="must be text")
    try:
        words = list(split_arguments(text))
    except ValueError as error:
        raise OptionWrong(name="extra_args", reason=str(error)) from error
    kept = for_workers(words)
    return kept, _without(words, kept)


def as_old_configuration(
    record: HostRecord | None, others: Iterable[Mapping[str, Any]], options: Options, master: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``GET /distributed/config`` gives.

    Args:
        record: of this host's agent; None where there is none.
        others: workers of other hosts, with ``name``, ``host`` and ``drained``.
        options: of the pack.
        master: facts of this ComfyUI.
    """
    configured = record.configuration.get("workers", {}) if record else {}
    local = [_old_worker(worker, configured.get(worker.name, {})) for worker in (record.workers if record else ())]
    remote = [
        {"id": worker["name"], "name": worker["name"], "host": worker["host"], "port": None, "cuda_device": None,
         "enabled": not worker["drained"], "extra_args": "", "type": "remote"}
        for worker in others
    ]  # fmt: skip
    settings = {key: getattr(options, option) ^ (key == _OPPOSITE) for key, option in OPTION_OF.items()}
    workers = [*local, *remote]
    return {"master": {**master, "extra_args": ""}, "workers": workers, "settings": settings, "tunnel": {}, "managed_processes": {}}


def _old_worker(worker: HostWorker, configured: Mapping[str, Any]) -> dict[str, Any]:
    kind, _, numbers = worker.device.partition(":")
    number = numbers.partition(",")[0]
    return {
        "id": configured.get("old_id") or worker.name, "name": worker.name, "host": None, "port": None,
        "cuda_device": int(number) if kind == "cuda" and number.isdecimal() else None, "enabled": worker.enabled,
        "extra_args": shlex.join(configured.get("comfyui_args", ())), "type": "local",
    }  # fmt: skip


def _without(words: list[str], kept: list[str]) -> list[str]:
    """The words that are not kept, in their order."""
    left, dropped = list(kept), []
    for word in words:
        if left and left[0] == word:
            left.pop(0)
        else:
            dropped.append(word)
    return dropped
