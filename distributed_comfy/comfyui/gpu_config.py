"""The configuration file of ComfyUI-Distributed (gpu_config.json), turned into workers and options of ours; says what has no place here."""
from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed_comfy.agent.configuration import HostConfiguration, parse_configuration
from distributed_comfy.agent.workers_file import WorkersFile
from distributed_comfy.comfyui.compat_config import OPTION_OF, arguments_of, device_of, option_change
from distributed_comfy.comfyui.old_ids import LONGEST
from distributed_comfy.comfyui.options import Options, OptionsFile
from distributed_comfy.engine.devices import nvidia_gpus
from distributed_comfy.errors import ImportRefused, OptionWrong, SettingInvalid, WorkersFileWrong
from distributed_comfy.panel.place import TakenOver
from distributed_comfy.settings import slug

LARGEST_BYTES = 2**20
_HERE = ("", "localhost", "127.0.0.1", "::1")
_WITHOUT_MEANING = {
    "worker_timeout_seconds": "a worker that is not heard of for DC_LEASE_TTL_S is dead, and its items run elsewhere",
    "has_auto_populated_workers": "workers.json is written once, where it does not exist",
}
_BLOCKS = {
    "tunnel": "`distributed-comfy invite --tunnel` opens one",
    "managed_processes": "processes of the other pack; end them there, if any runs",
}


@dataclass(frozen=True)
class Dropped:
    """Something that is not taken over."""

    place: str
    """Where it stands in the file."""
    why: str


@dataclass(frozen=True)
class Imported:
    """What a file says, in our words."""

    workers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name, as in workers.json."""
    options: dict[str, bool] = field(default_factory=dict)
    """Of the pack; only those that the file names."""
    dropped: tuple[Dropped, ...] = ()

    def configuration(self, source: str) -> HostConfiguration:
        """As workers.json has it.

        Raises:
            ImportRefused: a worker cannot be.
        """
        try:
            return parse_configuration({"workers": self.workers}, source)
        except WorkersFileWrong as error:
            raise ImportRefused(path=source, reason=str(error)) from error


@dataclass(frozen=True)
class Written:
    """Where the result lies."""

    workers: Path | None
    """None: there was no worker to write."""
    options: Path | None
    kept: Path | None
    """Where the workers.json of before is now."""


@dataclass(frozen=True)
class Replaced:
    """What becomes of the workers that a workers.json has before."""

    changed: dict[str, str] = field(default_factory=dict)
    """Those that the import has as well, and makes different, each with its device of before."""
    removed: dict[str, str] = field(default_factory=dict)
    """Those that it has not, each with its device."""


def read_gpu_config(path: Path, host_name: str) -> Imported:
    """Read a file of ComfyUI-Distributed; nothing is written.

    Args:
        path: of it.
        host_name: this host's, for workers that have no name.
    Raises:
        ImportRefused: it is no such file.
    """
    return parse_gpu_config(_text(path), host_name, str(path), models=_gpu_models())


def parse_gpu_config(text: str, host_name: str, source: str = "gpu_config.json", *, models: Sequence[str] = ()) -> Imported:
    """The same for the text of one.

    Args:
        text: of the file.
        host_name: as for `read_gpu_config`.
        source: where it comes from, for messages.
        models: of this host's GPUs, in the order of their numbers; numbers are doubtful where these differ.
    Raises:
        ImportRefused: it is no such file.
    """
    content = _content(text, source)
    dropped: list[Dropped] = []
    workers = _workers(content, host_name, dropped)
    dropped += _doubtful_numbers(workers, models)
    options = _options(content, dropped)
    dropped += _master(content)
    dropped += [Dropped(block, why) for block, why in _BLOCKS.items() if content.get(block)]
    known = {"master", "workers", "settings", *_BLOCKS}
    dropped += [Dropped(str(name)[:60], "not known") for name in content if name not in known]
    return Imported(workers, options, tuple(dropped))


def taken_over(text: str, host_name: str) -> TakenOver:
    """What a gpu_config.json says, as the panel takes it; errors as of `parse_gpu_config`."""
    found = parse_gpu_config(text, host_name, models=_gpu_models())
    return TakenOver(found.workers, found.options, tuple((each.place, each.why) for each in found.dropped))


def write_imported(imported: Imported, file: WorkersFile, options: OptionsFile, *, force: bool, source: str) -> Written:
    """Put it where the pack and `up` look; the workers.json of before is kept beside it.

    Args:
        force: replace what is there.
        source: the file that was read, for messages.
    Raises:
        ImportRefused: something is there that it would replace.
        OptionWrong, SettingInvalid: a file cannot be written.
    """
    configuration, known = imported.configuration(source), _known(file)
    changes = _changes(imported, options)
    if not force:
        refuse_to_replace(imported, file, options, source)
    kept = None
    if imported.workers:
        if file.exists():
            kept = file.path.with_name(file.path.name + ".before-import")
            shutil.copy2(file.path, kept)
        file.write(known.model_copy(update={"workers": configuration.workers}))  # what is said there of the host goes on
    for name, value in changes.items():
        options.change(name, value)
    return Written(file.path if imported.workers else None, options.path if changes else None, kept)


def replaced(imported: Imported, file: WorkersFile, source: str) -> Replaced:
    """What writing it would do to the workers that are there; arguments as of `write_imported`."""
    if not imported.workers:
        return Replaced()
    before, after = _known(file).workers, imported.configuration(source).workers
    return Replaced(
        {name: worker.device for name, worker in before.items() if name in after and after[name] != worker},
        {name: worker.device for name, worker in before.items() if name not in after},
    )


def _known(file: WorkersFile) -> HostConfiguration:
    """What the file says; one that cannot be used says nothing that could be lost."""
    try:
        return file.read_or_empty()
    except (SettingInvalid, WorkersFileWrong):
        return HostConfiguration()


def refuse_to_replace(imported: Imported, file: WorkersFile, options: OptionsFile, source: str) -> None:
    """
    Raises:
        ImportRefused: something is there that it would replace; see `write_imported`.
    """
    if imported.workers and file.exists():
        has = ", ".join(_known(file).workers) or "no worker"
        raise ImportRefused(path=source, reason=f"{file.path} is there already (with {has}); --force replaces it and keeps a copy")
    defaults = Options()
    if taken := sorted(name for name in _changes(imported, options) if getattr(options.current, name) != getattr(defaults, name)):
        raise ImportRefused(path=source, reason=f"{options.path} says otherwise about {', '.join(taken)}; --force changes that")


def _changes(imported: Imported, options: OptionsFile) -> dict[str, bool]:
    return {name: value for name, value in imported.options.items() if getattr(options.current, name) != value}


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ImportRefused(path=str(path), reason=f"it has more than {LARGEST_BYTES} bytes, so it is no gpu_config.json")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ImportRefused(path=str(path), reason=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ImportRefused(path=str(path), reason=f"it is no JSON: {error}") from error


def _content(text: str, source: str) -> dict[str, Any]:
    try:
        found = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise ImportRefused(path=source, reason=f"it is no JSON: {error}") from error
    if not isinstance(found, dict) or not any(name in found for name in ("workers", "settings", "master")):
        reason = "it has neither workers nor settings nor master; give the gpu_config.json of ComfyUI-Distributed"
        raise ImportRefused(path=source, reason=reason)
    return found


def _workers(content: Mapping[str, Any], host_name: str, dropped: list[Dropped]) -> dict[str, dict[str, Any]]:
    listed = content.get("workers") or []
    if not isinstance(listed, list):
        dropped.append(Dropped("workers", "no list"))
        return {}
    found: dict[str, dict[str, Any]] = {}
    for number, worker in enumerate(listed):
        place = f"workers[{number}]"
        if not isinstance(worker, dict):
            dropped.append(Dropped(place, "no object"))
            continue
        shown = f"{place} {str(worker.get('name') or worker.get('id') or '')[:60]!r}"
        if reason := _elsewhere(worker):
            dropped.append(Dropped(shown, reason))
            continue
        try:
            fields = _fields(worker, shown, dropped)
        except OptionWrong as error:
            dropped.append(Dropped(shown, str(error)))
            continue
        if old_id := _old_id(worker, shown, found, dropped):
            fields["old_id"] = old_id
        found[_free_name(worker, fields["device"], host_name, found)] = fields
    return found


def _gpu_models() -> list[str]:
    return [gpu.model for gpu in nvidia_gpus()]


def _doubtful_numbers(workers: Mapping[str, Mapping[str, Any]], models: Sequence[str]) -> Iterator[Dropped]:
    """What to look at where GPUs differ: the other pack counts as CUDA does, the fastest first, and here the driver's order counts."""
    if len(set(models)) < 2:
        return
    listed = ", ".join(f"{number} = {model}" for number, model in enumerate(models))
    for name, fields in workers.items():
        why = (
            f"it is {fields['device']} here, which may be another GPU than there: this host's differ, CUDA counts the fastest first, and "
            f"here they are counted as the driver lists them ({listed}); `distributed-comfy workers edit {name} --device` changes that"
        )
        yield Dropped(f"{name} order of GPUs", why)


def _old_id(worker: Mapping[str, Any], shown: str, found: Mapping[str, Mapping[str, Any]], dropped: list[Dropped]) -> str:
    """The id by which scripts know a worker; empty where it has none of its own."""
    given = worker.get("id")
    if isinstance(given, bool) or not isinstance(given, (str, int)) or not str(given).strip():
        return ""
    old_id = str(given).strip()[:LONGEST]
    if other := next((name for name, fields in found.items() if fields.get("old_id") == old_id), ""):
        dropped.append(Dropped(f"{shown} id", f"{other} has {old_id!r} already; scripts that call it get that one"))
        return ""
    return old_id


def _elsewhere(worker: Mapping[str, Any]) -> str:
    """Why a worker is not one of this host; empty where it is."""
    host = str(worker.get("host") or "").strip()
    if worker.get("type") not in ("remote", "cloud") and (host in _HERE or host == socket.gethostname()):
        return ""
    name = slug(str(worker.get("name") or host)) or "pc2"
    where = host[:100] or worker.get("type")
    return f"it is on another host ({where}): run `distributed-comfy invite --name {name}` here, and the command that it prints there"


def _fields(worker: Mapping[str, Any], shown: str, dropped: list[Dropped]) -> dict[str, Any]:
    enabled = worker.get("enabled", True)
    arguments, left_out = arguments_of(worker.get("extra_args"))
    fields = {"device": device_of(worker.get("cuda_device")), "enabled": enabled is not False, "comfyui_args": arguments}
    if worker.get("cuda_device") in (None, ""):
        why = "none is given, so it is the first GPU, cuda:0; `distributed-comfy workers edit --device` changes that"
        dropped.append(Dropped(f"{shown} cuda_device", why))
    if left_out:
        why = f"{' '.join(left_out)[:200]}: a worker listens nowhere, and its device stands in device"
        dropped.append(Dropped(f"{shown} extra_args", why))
    if worker.get("port"):
        dropped.append(Dropped(f"{shown} port", f"{str(worker['port'])[:10]}: a worker listens on no port"))
    return fields


def _free_name(worker: Mapping[str, Any], device: str, host_name: str, taken: Mapping[str, Any]) -> str:
    base = slug(str(worker.get("name") or "")) or f"{host_name}-{slug(device.replace(':', ''))}"
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def _options(content: Mapping[str, Any], dropped: list[Dropped]) -> dict[str, bool]:
    settings = content.get("settings") or {}
    if not isinstance(settings, dict):
        dropped.append(Dropped("settings", "no object"))
        return {}
    options: dict[str, bool] = {}
    for key, value in settings.items():
        place = f"settings.{str(key)[:60]}"
        if key not in OPTION_OF:
            dropped.append(Dropped(place, _WITHOUT_MEANING.get(key, "it tunes a way of transport that is not used here")))
            continue
        try:
            name, wanted = option_change(key, value)
        except OptionWrong as error:
            dropped.append(Dropped(place, str(error)))
            continue
        options[name] = wanted
    return options


def _master(content: Mapping[str, Any]) -> Iterator[Dropped]:
    master = content.get("master")
    if not isinstance(master, dict):
        return
    if master.get("extra_args"):
        yield Dropped("master.extra_args", "start ComfyUI with them yourself; its workers take them over")
    if master.get("cuda_device") is not None:
        yield Dropped("master.cuda_device", "start ComfyUI with --cuda-device; the pack sees which GPU it uses")
    for name in ("host", "port"):
        if master.get(name):
            yield Dropped(f"master.{name}", "workers connect to the cluster's Redis, and nothing calls the master back")
