"""What a host's workers are like, as a person or a program writes it down: checked values, and words for what is wrong with others."""
from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from distributed_comfy.config_file import nearest
from distributed_comfy.cpu_list import MOST_CPUS
from distributed_comfy.errors import WorkersFileWrong
from distributed_comfy.settings import EngineName, Settings, check_comfyui_url, check_device, redact_url, slug, variable

_HAVE_FIELDS = {
    "DC_DEVICE": "device", "DC_ENGINE": "engine", "DC_WORKER_TAGS": "tags", "DC_COMFYUI_ARGS": "comfyui_args", "DC_CORES": "cores",
    "DC_COMFYUI_URL": "comfyui_url",
    "COMFYUI_PATH": "comfyui_path", "DC_COMFYUI_PYTHON": "comfyui_python", "DC_THREADS": "threads", "DC_WORKER_NAME": "its name in workers",
    "CUDA_VISIBLE_DEVICES": "device", "HIP_VISIBLE_DEVICES": "device", "ONEAPI_DEVICE_SELECTOR": "device",
}  # fmt: skip
_OF_THE_AGENT = (
    "DC_CONFIG", "DC_REDIS_URL", "DC_BLOB_URL", "DC_KEY_PREFIX", "DC_HOST", "DC_RUNTIME_DIR", "DC_STARTED_BY", "DC_WORKERS_FILE",
)  # fmt: skip
_KINDS = {
    "bool": "true or false", "string": "text", "list": "a list", "tuple": "a list", "dict": "an object", "int": "a whole number",
    "model": "an object",
}  # fmt: skip
HIDDEN = "(set)"
"""Stands for the value of an environment variable where it is shown."""


class WorkerConfiguration(BaseModel):
    """One worker; its name is the key under which it stands."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    device: str = "cpu"
    """``cuda:0``, ``xpu:0``, ``mps`` or ``cpu``; a list of devices for nodes that use several."""
    enabled: bool = True
    """Whether ``up`` starts it."""
    engine: EngineName | None = None
    """``comfyui``, ``builtin`` or ``attach``; null: the agent's DC_ENGINE, else ``comfyui`` where a ComfyUI is found."""
    comfyui_url: str = ""
    """Address of the running ComfyUI that engine ``attach`` drives; empty: the agent's DC_COMFYUI_URL."""
    comfyui_path: str = ""
    """ComfyUI's folder; empty: the agent's COMFYUI_PATH, else ``~/comfy/ComfyUI``."""
    comfyui_python: str = ""
    """Interpreter for ComfyUI; empty: the agent's DC_COMFYUI_PYTHON, else the tree's own."""
    comfyui_args: tuple[str, ...] = ()
    """Extra arguments of ComfyUI, one text each; empty: the agent's DC_COMFYUI_ARGS."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the worker beside the agent's own."""
    tags: tuple[str, ...] = ()
    """What jobs may ask for; empty: the agent's DC_WORKER_TAGS."""
    threads: int = Field(0, ge=0, le=1024)
    """CPU threads of the engine; 0: the agent's DC_THREADS, else by its cores, see below."""
    cores: Literal["auto"] | tuple[int, ...] = "auto"
    """CPUs it may use (Linux), as a list of numbers; ``auto``: its share of those near its GPU, see below."""
    old_id: str = ""
    """Its id in ComfyUI-Distributed, where it was imported from there: scripts written for that pack call it so."""

    @field_validator("device", mode="before")
    @classmethod
    def _one_text(cls, device: Any) -> Any:
        if isinstance(device, str):
            return check_device(device)
        if not isinstance(device, (list, tuple)) or not device or not all(isinstance(each, str) for each in device):
            raise ValueError('must be cpu, mps, or like cuda:0, or a list like ["cuda:0", "cuda:1"]')
        kinds = {check_device(each).partition(":")[0] for each in device}
        if len(kinds) > 1 or (len(device) > 1 and not kinds <= {"cuda", "xpu"}):
            raise ValueError("must be one device, or several GPUs of one kind")
        numbers = ",".join(each.partition(":")[2] for each in device)
        return check_device(f"{kinds.pop()}:{numbers}" if numbers else device[0])

    @field_validator("comfyui_url")
    @classmethod
    def _an_address(cls, url: str) -> str:
        return check_comfyui_url(url) if url else ""

    @field_validator("comfyui_args", "tags", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
            raise ValueError("must be a list of texts")
        return tuple(value)

    @field_validator("tags")
    @classmethod
    def _one_word_each(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(r"[^\s,]+", tag) for tag in tags):
            raise ValueError("must be words without spaces and commas")
        return tuple(sorted(set(tags)))

    @field_validator("cores", mode="before")
    @classmethod
    def _cpus(cls, cores: Any) -> Any:
        if cores == "auto":
            return cores
        if not isinstance(cores, (list, tuple)) or not cores or not all(type(cpu) is int and 0 <= cpu < MOST_CPUS for cpu in cores):
            raise ValueError('must be "auto" or a list of CPU numbers like [0, 1, 2, 3]')
        return tuple(sorted(set(cores)))

    @field_validator("environment")
    @classmethod
    def _variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            reason = why_not_in_environment(name) or ("must not hold a NUL character" if "\0" in value else "")
            if reason:
                raise ValueError(f"cannot have {name!r}: {reason}")
        return environment


class HostConfiguration(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    """Of the format of this file."""
    debug: bool = False
    """Workers write everything to their logs, as with DC_LOG_LEVEL=DEBUG."""
    auto_launch: bool = True
    """``up`` starts the enabled workers; otherwise they wait for `workers start`. A ComfyUI that is the host's agent goes by its own
    option ``auto_launch`` instead."""
    stop_with_owner: bool = True
    """Workers end with the agent, also when it is killed; otherwise they go on, and the next ``up`` takes them back (not on Windows). A
    ComfyUI goes by its option ``stop_workers`` instead."""
    remote_configuration: bool | None = None
    """Whether `workers add`, `edit` and `remove` work from other hosts: they can start any program here. null: only where the Redis is this
    host's own."""
    workers: dict[str, WorkerConfiguration] = Field(default_factory=dict)
    """The workers by name; names have ``a-z``, ``0-9``, ``-`` and ``_`` only."""

    @field_validator("workers")
    @classmethod
    def _names(cls, workers: dict[str, WorkerConfiguration]) -> dict[str, WorkerConfiguration]:
        for name in workers:
            if not name or name != slug(name):
                raise ValueError(f"cannot have {name!r}: a name has only a-z, 0-9, - and _ ({slug(name) or 'gpu-0'!r} would do)")
        return workers


def why_not_in_environment(name: str) -> str:
    """What forbids a variable in a worker's ``environment``; empty where nothing does."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
        return "a variable has letters, digits and _ only"
    capitals = name.upper()
    if capitals in _HAVE_FIELDS:
        return f"use {_HAVE_FIELDS[capitals]}"
    if capitals in _OF_THE_AGENT:
        return "all workers of an agent share it, so set it where `up` runs"
    known = {variable(field) for field in Settings.model_fields}
    if capitals.startswith("DC_") and capitals not in known:
        close = nearest(name, known)
        return f"it is no setting; did you mean {close}?" if close else "it is no setting; docs/settings.md shows all"
    return ""


def parse_configuration(found: Mapping[str, Any], source: str) -> HostConfiguration:
    """The configuration in a JSON object.

    Args:
        found: as JSON gives it.
        source: where it comes from, for messages.
    Raises:
        WorkersFileWrong: names the first place that is wrong and what it must be.
    """
    try:
        return HostConfiguration.model_validate(found)
    except ValidationError as error:
        place, reason = _in_words(error.errors()[0])
        raise WorkersFileWrong(source=source, place=place, reason=reason) from error


def parse_worker(found: Mapping[str, Any], name: str, source: str) -> WorkerConfiguration:
    """One worker in a JSON object; see `parse_configuration`."""
    return parse_configuration({"workers": {name: found}}, source).workers[name]


def wrong_fields(found: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with single fields of a worker: field -> what it must be; empty where all can be used."""
    try:
        WorkerConfiguration.model_validate(found)
    except ValidationError as error:
        told = ((each["loc"], *_in_words({**each, "loc": ("workers", "it", *each["loc"])})) for each in error.errors())
        return {str(place[0]) if place else "": reason for place, _, reason in told}
    return {}


def plain_configuration(configuration: HostConfiguration) -> dict[str, Any]:
    """The configuration as JSON values, as it is written down; a device list is a list again."""
    plain = configuration.model_dump(mode="json")
    for worker in plain["workers"].values():
        kind, _, numbers = worker["device"].partition(":")
        if "," in numbers:
            worker["device"] = [f"{kind}:{number}" for number in numbers.split(",")]
    return plain


def shown_configuration(configuration: HostConfiguration) -> dict[str, Any]:
    """The same for everybody to see: neither what environment variables hold is shown, nor a password in an address."""
    plain = plain_configuration(configuration)
    for worker in plain["workers"].values():
        worker["environment"] = dict.fromkeys(worker["environment"], HIDDEN)
        worker["comfyui_url"] = redact_url(worker["comfyui_url"])
    return plain


def relative_to(worker: WorkerConfiguration, folder: Path) -> WorkerConfiguration:
    """With paths as a shell would have made them: ``~`` is the user's home, others are meant from the file's folder."""
    tree, python = worker.comfyui_path, worker.comfyui_python
    changes = {"comfyui_path": str(folder / os.path.expanduser(tree))} if tree else {}  # the home of nobody stays as it is
    if python and re.search(r"[/\\]", python):
        changes["comfyui_python"] = str(folder / os.path.expanduser(python))
    return worker.model_copy(update=changes)


def why_not_of_host(host: str, name: str) -> str:
    """Why a worker of an invited host cannot be called so: nobody believes what the host says of others; empty where it can."""
    return "" if name.startswith(f"{host}-") else f"must begin with {host}-, as all names of workers of host {host}"


def _in_words(error: Mapping[str, Any]) -> tuple[str, str]:
    """Place and reason of one of pydantic's errors, in our words."""
    parts = [str(part) for part in error["loc"]]
    place = ".".join(parts) or "the file"
    kind, own = error["type"], error.get("ctx", {}).get("error")
    if isinstance(own, ValueError):
        return place, str(own)
    if kind == "extra_forbidden":
        names = _fields_at(parts[:-1])
        close = nearest(parts[-1], names)
        return place, "is not a field; " + (f"did you mean {close}?" if close else f"there are {', '.join(sorted(names))}")
    if kind == "literal_error":
        return place, f"must be {error['ctx']['expected'].replace(chr(39), chr(34))} (it is {error['input']!r})"
    if kind in ("greater_than_equal", "less_than_equal"):
        return place, f"must be a whole number from 0 to 1024 (it is {error['input']!r})"
    words = next((words for name, words in _KINDS.items() if kind.startswith(name)), "")
    return place, f"must be {words} (it is {error['input']!r})" if words else str(error["msg"])


def _fields_at(place: Iterable[str]) -> set[str]:
    return set(WorkerConfiguration.model_fields if list(place)[:1] == ["workers"] else HostConfiguration.model_fields)
