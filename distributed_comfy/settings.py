"""All settings, read once from the environment and a file, then passed as an argument; no other module reads the environment."""
from __future__ import annotations

import getpass
import os
import re
import socket
import sys
import unicodedata
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from distributed_comfy.config_file import default_config_file, nearest, read_config_file
from distributed_comfy.cpu_list import parse_cpus
from distributed_comfy.errors import SettingInvalid
from distributed_comfy.frame_plan import FrameOption
from distributed_comfy.header_lines import parse_headers
from distributed_comfy.setting_words import requirement

EngineName = Literal["comfyui", "builtin", "attach"]
LogFormat = Literal["text", "json"]
Starter = Literal["agent", "run", "systemd", "container", "hand"]
"""Who starts a worker, and so who may start it again."""

_SECRETS = {"DC_REDIS_URL", "DC_BLOB_URL", "DC_FLOWER_BASIC_AUTH", "DC_COMFYUI_URL", "DC_COMFYUI_HEADERS", "DC_COMFYUI_TOKEN"}
"""Settings that may hold a password."""


class Settings(BaseSettings):
    """Every ``DC_`` setting (and ComfyUI's own ``COMFYUI_PATH``) with its default."""

    model_config = SettingsConfigDict(env_prefix="DC_", frozen=True, env_ignore_empty=True, populate_by_name=True)

    config: Path | None = None
    """JSON file with further settings, see above; without it the user's own if there is one."""
    redis_url: str = ""
    """State Redis: queues, jobs, items, leases. Empty: the embedded one."""
    blob_url: str = ""
    """Blob Redis: tensors and files, no persistence. Empty: the embedded second server, or the state Redis where that one is configured."""
    allow_plaintext: bool = False
    """Whether ``redis://`` may lead to another host, in the clear: for a network that nobody else is in, as that of containers."""
    key_prefix: str = Field("dc:", pattern=r"^[A-Za-z0-9_.-]+:$")
    """First part of every Redis key."""
    comfyui_path: Path | None = Field(None, validation_alias=AliasChoices("comfyui_path", "COMFYUI_PATH"))
    """ComfyUI's folder; without it ``~/comfy/ComfyUI`` if that exists."""
    comfyui_python: str = ""
    """Interpreter for ComfyUI; without it the tree's own venv or python_embeded, else this one."""
    engine: EngineName | None = None
    """Engine of a worker: ``comfyui``, ``builtin`` or ``attach``; without it ``comfyui`` where a tree is found."""
    device: str = ""
    """Device of a worker, ``cuda:0`` or ``cpu``; without it the first GPU, else the CPU."""
    worker_name: str = ""
    """Name of a worker; without it host, device and a free number."""
    worker_tags: str = ""
    """Comma-separated tags of a worker."""
    comfyui_args: str = ""
    """Extra ComfyUI arguments of a worker, as in a shell; on Windows a backslash is part of a path, not an escape."""
    comfyui_base_directory: Path | None = None
    """ComfyUI's --base-directory (models, custom_nodes, input); without it the tree itself."""
    comfyui_url: str = "http://127.0.0.1:8188"
    """Address of the running ComfyUI that engine ``attach`` drives: http or https, with a path where a proxy has one."""
    comfyui_headers: str = ""
    """Headers of each request to that ComfyUI, where a proxy asks for them: a JSON object, or lines like ``Name: value``."""
    comfyui_token: str = Field("", pattern=r"^([A-Za-z0-9_-]{43})?$")
    """Token of the node pack in that ComfyUI (``distributed-comfy comfyui token`` prints it there); without it that of this user's own,
    where the address is a loopback one."""
    comfyui_names: str = Field("", pattern=r"^[A-Za-z0-9., _-]*$")
    """Comma-separated names, like ``comfy.example.org``, under which browsers may reach the node pack's part of ComfyUI; addresses, names
    without a dot and this host's own name always do."""
    host: str = ""
    """This host's name in worker names; without it the system's."""
    user: str = ""
    """Submitter for fairness between users; without it the login name."""
    threads: int = Field(0, ge=0, le=1024)
    """CPU threads of a worker's ComfyUI; 0: shared evenly among workers that one command starts, else torch's own choice. The
    built-in engine always has one, so that its bits never depend on this."""
    cores: str = ""
    """CPUs that a worker and its engine may use, like ``0-3,8`` (Linux only); without it all that it inherits."""
    started_by: Starter | None = None
    """Who starts a worker, for listings: the agent and ``run`` set it; without it ``systemd``, ``container`` or ``hand``, as it looks."""
    workers_file: Path | None = None
    """File in which ``distributed-comfy up`` keeps its workers (docs/agent.md); without it ``workers.json`` beside the user's own file."""
    slots: int = Field(1, ge=1, le=16)
    """Claims a worker holds at once; above 1 the next item is ready while the last one ships."""

    lease_ttl_s: float = Field(6.0, gt=0)
    """A worker not heard of for this long is dead."""
    renew_interval_s: float = Field(1.5, gt=0)
    """How often a worker renews its lease."""
    reaper_interval_s: float = Field(1.0, gt=0)
    """How often one elected process looks for expired leases."""
    owner_ttl_s: float = Field(10.0, gt=0)
    """A job whose owner is not heard of for this long is parked."""
    ownerless_ttl_s: float = Field(600.0, ge=0)
    """A parked job is cancelled after this long; results of a done one that nobody fetched are dropped."""
    warm_slice_s: float = Field(30.0, ge=0)
    """How long a worker may prefer the job it served last while others wait, so that models stay loaded."""
    priority_aging_s: float = Field(60.0, gt=0)
    """A waiting job gains one priority step per this time."""
    retry_backoff_s: float = Field(1.0, ge=0)
    """Wait before an item that failed twice for a passing reason runs again; doubles each time. The first retry is immediate."""
    max_attempts: int = Field(3, ge=1)
    """Executions of one item per class of error before it counts as failed."""
    stall_timeout_s: float = Field(900.0, gt=0)
    """An engine that gives no sign of life for this long is ended; longer than the slowest model load."""
    hang_timeout_s: float = Field(120.0, gt=0)
    """A worker whose consumer or lease thread does not move for this long, while its servers answer, ends and is started again."""
    describe_interval_s: float = Field(60.0, gt=0)
    """How often a worker looks again at its models and node classes."""
    status_interval_s: float = Field(2.0, ge=0.25)
    """How often a worker tells its status; it vanishes after three times as long."""
    log_lines: int = Field(2000, ge=10, le=20_000)
    """Lines of a worker's log that `workers logs` can show, roughly."""
    log_ttl_s: float = Field(3600.0, ge=0.001, le=604_800)
    """How long these lines outlive the worker."""
    refused_ttl_s: float = Field(60.0, ge=0)
    """An invited host whose user the cluster has refused for this long was shut out: its workers and its agent end."""
    drain_timeout_s: float = Field(60.0, ge=0)
    """How long a worker that is asked to stop may finish its item before it gives it back."""
    job_ttl_s: int = Field(86_400, ge=60)
    """How long an ended job stays in the listing."""

    blob_limit_bytes: int = Field(2**33, ge=2**20)
    """Largest single tensor or file."""
    chunk_bytes: int = Field(2**20, ge=2**16, le=64 * 2**20)
    """A blob is stored in pieces of this size, so that no client of the Redis waits long for another."""
    blob_ttl_s: int = Field(86_400, ge=60)
    """A blob that nobody fetched or deleted vanishes after this long."""
    blob_away_s: float = Field(600.0, gt=0)
    """A job whose collector has had no answer of the blob server for this long ends; what is finished of it waits for the same prompt."""
    shared_memory: bool = True
    """Results of workers on the host that collects them go through its memory (``/dev/shm`` on Linux) instead of the Redis."""
    job_bytes_in_flight: int = Field(2**30, ge=2**20)
    """Results of one job that may wait in the blob store or be under way."""
    bytes_in_flight: int = Field(0, ge=0)
    """The same for all jobs; 0: half of the blob server's maxmemory, or 4 GiB where it has none."""

    frames: FrameOption = "exact"
    """How the tensors of jobs submitted here travel, where `--frames` does not say: `auto` for slow links, see docs/slow-links.md."""

    tile_item_bytes: int = Field(2**28, ge=2**20)
    """Pixels of one tile of an upscale over all frames that one item takes; more frames become more items."""

    runtime_dir: Path | None = None
    """Folder of the embedded Redis, sockets and locks; without it a per-user folder."""
    cache_dir: Path | None = None
    """Input files by hash, engine temp folders; without it a per-user folder."""
    execution_log: Path | None = None
    """File to which each engine appends one line per execution it begins (for tests of lost and doubled work)."""
    redis_accept: str = Field("", pattern=r"^(\d[\w.:~+-]*)?$")
    """Version of a Redis server or its package, as `doctor` prints it, that you know to have the fixes which `doctor` misses."""
    flower_basic_auth: str = ""
    """``USER:PASS`` that Flower's page asks for."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Detail of the logs."""
    log_format: LogFormat = "text"
    """``text``, or ``json``: each line of the logs one object, with job and item."""

    @field_validator("redis_url", "blob_url")
    @classmethod
    def _is_redis_url(cls, url: str) -> str:
        if url and not re.match(r"^(rediss?|unix)://", url):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return url

    @field_validator("device")
    @classmethod
    def _is_device(cls, device: str) -> str:
        return check_device(device) if device else device

    @field_validator("cores")
    @classmethod
    def _is_cpu_list(cls, cores: str) -> str:
        parse_cpus(cores)
        return cores

    @field_validator("comfyui_url")
    @classmethod
    def _is_web_address(cls, url: str) -> str:
        return check_comfyui_url(url)

    @field_validator("comfyui_headers")
    @classmethod
    def _are_headers(cls, text: str) -> str:
        parse_headers(text)
        return text

    @field_validator("flower_basic_auth")
    @classmethod
    def _is_name_and_password(cls, auth: str) -> str:
        if auth and not re.fullmatch(r"[^:]+:.+", auth):
            raise ValueError("must be like USER:PASS")
        return auth

    @cached_property
    def host_name(self) -> str:
        """`host`, or the system's name, in the characters a worker name may have."""
        return slug(self.host or socket.gethostname().split(".")[0]) or "host"

    @cached_property
    def submitter(self) -> str:
        """`user`, or the login name."""
        return self.user or _login_name()

    @cached_property
    def runtime_folder(self) -> Path:
        """Per-user folder for the embedded Redis, created on demand by its users."""
        return self.runtime_dir or _user_folder("run")

    @cached_property
    def cache_folder(self) -> Path:
        """Per-user folder for cached inputs and engine temp folders."""
        return self.cache_dir or _user_folder("cache")

    @cached_property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """`comfyui_headers` as (name, value) pairs."""
        return parse_headers(self.comfyui_headers)

    @cached_property
    def config_folder(self) -> Path:
        """Per-user folder of what must last: the file of settings, an accepted invitation."""
        return default_config_file(os.environ).parent

    @cached_property
    def workers_path(self) -> Path:
        """Where this host's workers are written down."""
        return self.workers_file or default_config_file(os.environ).with_name("workers.json")

    @cached_property
    def starter(self) -> Starter:
        """`started_by`, or what this process's surroundings look like."""
        return self.started_by or _starter(os.environ)

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """`worker_tags` split and sorted."""
        return tuple(sorted(tag for tag in re.split(r"[,\s]+", self.worker_tags) if tag))


def read_settings(**overrides: object) -> Settings:
    """The settings of this process.

    Args:
        overrides: values that win over the environment (command-line options), as that does over the file of settings; None means not
            given.

    Raises:
        SettingInvalid: names the variable (and the file it stands in), its value and what it must be.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    path, in_file = _from_file()
    try:
        return Settings(**{**in_file, **given})
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]).lower()
        where = f" (in {path})" if field in in_file and field not in given else ""
        reason = f"{requirement(Settings.model_fields[field], first)}{_shown(field, first.get('input'))}{where}"
        raise SettingInvalid(name=variable(field), reason=reason) from error


def _from_file() -> tuple[Path | None, dict[str, Any]]:
    """The file of settings, and by field what it says and the environment does not; values are checked with all others.

    Raises:
        SettingInvalid: see `config_file.read_config_file`.
    """
    named = os.environ.get("DC_CONFIG")
    path = Path(os.path.expanduser(named or default_config_file(os.environ))).absolute()
    if not named and not os.path.exists(path):  # Path.exists() would raise where the user may not look
        return None, {}
    fields, said = _fields_of_file(), fields_in_environment()
    entries = read_config_file(path, fields, _SECRETS)
    kept = {fields[name]: value for name, value in entries.items() if fields[name] not in said and value != ""}
    return path, {"config": path, **{field: _absolute(field, value, path.parent) for field, value in kept.items()}}


def _fields_of_file() -> dict[str, str]:
    """What may stand in the file of settings: name there -> field."""
    return {variable(name): name for name in Settings.model_fields if name != "config"}


def fields_in_environment() -> frozenset[str]:
    """The fields of `Settings` that variables of this process say, so that no file does."""
    given = {name.upper() for name, value in os.environ.items() if value}
    return frozenset(field for name, field in _fields_of_file().items() if name in given)


def file_entries(path: Path) -> dict[str, str | int | float]:
    """What stands in a file of settings now, by variable; nothing where there is none.

    Raises:
        SettingInvalid: see `config_file.read_config_file`.
    """
    return read_config_file(path, _fields_of_file(), _SECRETS) if path.exists() else {}


def checked_field(field: str, value: Any) -> Any:
    """A value as the setting has it.

    Raises:
        SettingInvalid: it cannot have it.
    """
    try:
        return getattr(Settings(**{field: value}), field)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingInvalid(name=variable(field), reason=requirement(Settings.model_fields[field], first)) from error


def _absolute(field: str, value: object, folder: Path) -> object:
    """A path in the file is relative to the file's folder, and ``~`` is the user's home, as no shell will say here."""
    if not isinstance(value, str):
        return value
    path = folder / Path(value).expanduser()
    if field == "comfyui_python":  # a name without a folder is looked for in PATH
        return str(path) if "/" in value or os.sep in value else value
    return path if "Path" in str(Settings.model_fields[field].annotation) else value


def variable(field: str) -> str:
    """The environment variable of a field of `Settings`."""
    return "COMFYUI_PATH" if field == "comfyui_path" else f"DC_{field.upper()}"


def ignored_variables() -> str:
    """In words, which variables of the environment are called like settings and are none; empty where all are known."""
    known = {variable(field) for field in Settings.model_fields}
    told = []
    for name in sorted(os.environ):
        if name.upper().startswith("DC_") and name.upper() not in known:
            close = nearest(name, known)
            told.append(f"{name} is no setting and is ignored" + (f"; did you mean {close}?" if close else "; docs/settings.md shows all"))
    return " ".join(told)


def child_environment(settings: Settings, inherited: Mapping[str, str] | None = None, /, **changes: object) -> dict[str, str]:
    """The environment of a program of ours that this one starts: its own, the settings that were given, and changes to those.

    Args:
        settings: of this process, however they were given.
        inherited: variables in place of this process's own.
        changes: fields of `Settings` with other values for the child.
    """
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    ours = {variable(name): str(value) for name, value in {**given, **changes}.items() if value is not None}
    return {**(os.environ if inherited is None else inherited), **ours}


def environment_at_start(names: Collection[str]) -> dict[str, str]:
    """This process's variables, but some of them as they were when it started, because it changed them itself for libraries.

    Args:
        names: of those; where the system does not tell how they were (Windows, macOS), they are left out.
    """
    now = {name: value for name, value in os.environ.items() if name not in names}
    try:
        began = Path("/proc/self/environ").read_bytes().decode(errors="surrogateescape").split("\0")
    except OSError:
        return now
    then = dict(entry.split("=", 1) for entry in began if "=" in entry)
    return {**now, **{name: then[name] for name in names if name in then}}


def _shown(field: str, value: object) -> str:
    """A URL may hold a password, so only its scheme is shown; a password not at all."""
    if field.endswith(("_auth", "_headers", "_token")):
        return " (it is not shown)"
    return f", not {str(value).split(':')[0]}:..." if field.endswith("_url") else f", not {value!r}"


def changed(settings: Settings, **changes: object) -> Settings:
    """The settings with other values; what is derived from them is derived anew."""
    return Settings(**{**{name: getattr(settings, name) for name in settings.model_fields_set}, **changes})


def check_device(device: str) -> str:
    """The device as it is.

    Raises:
        ValueError: it is none that a worker can have.
    """
    if not re.fullmatch(r"cpu|mps|(cuda|xpu):\d+(,\d+)*", device, re.ASCII):
        raise ValueError("must be cpu, mps or like cuda:0 or cuda:0,1")
    return device


def check_comfyui_url(url: str) -> str:
    """The address of a running ComfyUI, without a slash at its end.

    Raises:
        ValueError: it is none.
    """
    if not re.match(r"^https?://[^/?#\s]+[^?#\s]*$", url):
        raise ValueError("must be like http://127.0.0.1:8188 or https://host/path")
    return url.rstrip("/")


def slug(text: str) -> str:
    """``text`` in the characters that queue and worker names may have: ``[a-z0-9_-]``; of a letter with a mark the letter."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(letter))
    return re.sub(r"[^a-z0-9_-]+", "-", plain).strip("-")


def redact_url(url: str) -> str:
    """``url`` without its password, or the token in its place, for logs and messages; of servers without what follows ``?``, too."""
    hidden = re.sub(r"://[^:@/]+@", "://***@", re.sub(r"(://[^:@/]*):[^@/]*@", r"\1:***@", url))
    return re.sub(r"((?:rediss?|unix)://[^\s?]*)\?[^\s'\"]*[^\s'\".,;:)]", r"\1", hidden)


def _starter(environment: Mapping[str, str]) -> Starter:
    """A service of systemd, also through a script of one line; a terminal that is one itself hands INVOCATION_ID on to everybody."""
    main_pid = environment.get("SYSTEMD_EXEC_PID", "")
    if environment.get("INVOCATION_ID") and (not main_pid or main_pid in (str(os.getpid()), str(os.getppid()))):
        return "systemd"
    if environment.get("container") or any(os.path.exists(mark) for mark in ("/.dockerenv", "/run/.containerenv")):
        return "container"
    return "hand"


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container user without a name
        return f"uid{os.getuid()}" if hasattr(os, "getuid") else "user"


def _user_folder(kind: str) -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "distributed-comfy" / kind
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "distributed-comfy" / kind
