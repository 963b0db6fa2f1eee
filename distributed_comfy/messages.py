"""The records that cross process and host borders: frozen, versioned, JSON (never pickle).

`dump` and `load` are the only way in and out; a record of another version is refused by name.  Seeds and ids inside stay exact,
because Lua scripts treat a record as an opaque string and never decode it.
"""
from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, Union, cast

from pydantic import TypeAdapter, ValidationError

from distributed_comfy.errors import MessageVersionUnknown, PromptMalformed
from distributed_comfy.frame_plan import FramePlan
from distributed_comfy.tile_stage import TileStage

MESSAGE_VERSION = 1
"""Version of every record that has none of its own; a change that old code cannot read raises it."""
JOB_VERSION = 2
"""Of `JobRecord` and all that it holds.  2: the tiles of an item are told to one node, `TileStage.regions`."""

Prompt = dict[str, dict[str, Any]]
"""API-format graph: ``{node_id: {"class_type": str, "inputs": {name: literal or [node_id, slot]}, "_meta"?: {...}}}``."""

ItemKind = Literal["generate", "whole", "prepare", "tile", "last"]
"""``generate``: one seed of a distributed job; ``whole``: a prompt without distributed nodes; ``prepare``: makes the image to upscale;
``tile``: a part of that image; ``last``: what follows the collector or the upscale."""

FED_KINDS: frozenset[ItemKind] = frozenset({"prepare", "tile", "last"})
"""Items that the owner of the job gives values to when it unblocks them."""

OnMissing = Literal["error", "drop", "repeat"]
"""What a collector makes of an item that failed for good: no result at all, the others alone, or the last good one in its place."""

ResultsGoTo = Literal["collector", "celery"]
"""``collector``: whoever owns the job fetches its results; ``celery``: they stay in the blob store for Celery's result API."""

T = TypeVar("T")


# -- results ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RunHistory:
    """What ComfyUI's own history says of a run, beside its outputs."""

    cached: tuple[str, ...] = ()
    """Nodes whose results were there already, in ComfyUI's order."""
    meta: dict[str, Any] = field(default_factory=dict)
    """ComfyUI's ``meta`` of the history, node id -> where its ui result belongs."""


@dataclass(frozen=True)
class TensorRef:
    """Where a tensor's frame lies."""

    blob: str
    """Blob id in the blob store; holds the claim id, so no two executions share it."""
    dtype: str
    """Element type, as in the frame header (``float32``, ``bfloat16``...)."""
    shape: tuple[int, ...]
    """Dimensions; an image is [B, H, W, C]."""
    size_bytes: int
    """Bytes of its elements."""
    stored_bytes: int | None = None
    """Payload bytes in the blob store; None where they are the elements themselves."""

    @property
    def payload_bytes(self) -> int:
        """What lies in the blob store, without the frame's header."""
        return self.size_bytes if self.stored_bytes is None else self.stored_bytes


@dataclass(frozen=True)
class LiteralValue:
    """A number, string, boolean, None or plain list of these, carried in the record."""

    literal: Any


@dataclass(frozen=True)
class MappingValue:
    """A dict of values, such as a LATENT ``{"samples": tensor}`` or an AUDIO ``{"waveform": tensor, "sample_rate": int}``."""

    entries: dict[str, Value]


Value = Union[TensorRef, LiteralValue, MappingValue]
"""What can travel along an edge of the graph."""


@dataclass(frozen=True)
class Capture:
    """One value that a sink took from the graph."""

    node_id: str
    """The sink's id: the collector's own, or ``<node>~<slot>`` for an edge that crosses the cut."""
    slot: str
    """Input of the collector (``images``, ``audio``, ``latents``, ``masks``), or ``value``."""
    list_index: int
    """Position in the list that ComfyUI passes (INPUT_IS_LIST); 0 for a single value."""
    value: Value


@dataclass(frozen=True)
class FileRef:
    """A file by content: an input to bring to a worker, or an output to bring home."""

    name: str
    """Path relative to its folder, with ``/``."""
    media_type: str
    """MIME type, guessed from the name; ``application/octet-stream`` when unknown."""
    sha256: str
    """Hex digest of the content."""
    size_bytes: int
    blob: str
    """Blob id in the blob store."""
    folder: Literal["input", "output", "temp"] = "output"
    """Which of ComfyUI's folders it belongs to."""
    node_id: str = ""
    """The output node that wrote it; empty for an input, and where no node names it."""


@dataclass(frozen=True)
class ItemResult:
    """What one execution of one item gave."""

    captures: tuple[Capture, ...] = ()
    files: tuple[FileRef, ...] = ()
    outputs: dict[str, Any] = field(default_factory=dict)
    """ComfyUI's ``outputs`` of the history, node id -> ui dict."""
    blocked: tuple[str, ...] = ()
    """Sinks that got nothing because something upstream was blocked or lazily skipped."""
    worker: str = ""
    device_class: str = ""
    """GPU model, driver, torch build, engine version and flags: results are comparable bit for bit only within one."""
    engine: str = ""
    seconds: float = 0.0
    """Engine time of the item, without queueing and shipping."""
    history: RunHistory | None = None
    """Of a job that `JobRecord.echoes` alone."""
    version: int = MESSAGE_VERSION

    @property
    def size_bytes(self) -> int:
        """Bytes that lie in the blob store for this result."""
        return sum(_value_bytes(capture.value) for capture in self.captures) + sum(file.size_bytes for file in self.files)


def _value_bytes(value: Value) -> int:
    if isinstance(value, TensorRef):
        return value.payload_bytes
    if isinstance(value, MappingValue):
        return sum(_value_bytes(entry) for entry in value.entries.values())
    return 0


# -- jobs and items -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Patch:
    """One input of one node replaced by a literal."""

    node_id: str
    input: str
    value: Any


@dataclass(frozen=True)
class ItemSpec:
    """What an engine needs to know about one item, beside the stage's prompt."""

    index: int
    """0-based, without gaps: generated items in order, the one that prepares for tiles, the last stage; then tiles, once they are known."""
    kind: ItemKind
    prompt_hash: str
    """`prompt_hash` of the stage's prompt, stored once per job."""
    targets: tuple[str, ...]
    """Output nodes (sinks included) to execute."""
    patches: tuple[Patch, ...] = ()
    """Literals of this item alone, such as its seed."""
    seed: str = ""
    """The item's seed in decimal, for people; empty where nothing varies."""


@dataclass(frozen=True)
class Requirement:
    """What a worker must have to run a stage; equal requirements share one signature."""

    engine: str
    """``comfyui``, ``builtin``, ``attach`` or empty for any."""
    node_classes: tuple[str, ...]
    """Sorted class names."""
    choices: tuple[tuple[str, str, str], ...] = ()
    """Sorted (class, input, value) of string literals; binding where the worker's class offers a list for that input."""
    tags: tuple[str, ...] = ()
    """Sorted tags that the worker must carry."""
    device_class: str = ""
    """The one `Capability.device_class` that may run it; empty for any."""
    services: tuple[str, ...] = ()
    """Sorted: what the nodes of this project do in it, see `workflow.services`."""


@dataclass(frozen=True)
class Capability:
    """What a worker can run; equal capabilities share one hash."""

    engine: str
    engine_version: str
    node_classes: tuple[str, ...]
    """Sorted."""
    output_classes: tuple[str, ...] = ()
    """The node classes that are output nodes, sorted."""
    choice_lists: tuple[tuple[str, ...], ...] = ()
    """Distinct value lists (model files, samplers...), separators normalised to ``/``."""
    choices: dict[str, dict[str, int]] = field(default_factory=dict)
    """class -> input -> index into `choice_lists`, where validation demands a value of the list."""
    file_inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    """class -> input -> folder (``input``), for inputs that name a file to bring along."""
    seed_limits: dict[str, dict[str, str]] = field(default_factory=dict)
    """class -> INT input -> its maximum in decimal, where one is declared."""
    output_types: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """class -> types of its outputs (``IMAGE``, ``MODEL``...), to tell which edges can travel."""
    model_lists: dict[str, int] = field(default_factory=dict)
    """Model folder (``checkpoints``) -> index into `choice_lists`, where it has files; empty of an engine that has none."""
    model_inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    """class -> input -> the model folder that its list shows, where that is known."""
    device: str = "cpu"
    device_class: str = ""
    tags: tuple[str, ...] = ()
    services: tuple[str, ...] | None = None
    """Sorted: those of `Requirement.services` that it can do; None for all, because it has the nodes of this project."""
    version: int = MESSAGE_VERSION


@dataclass(frozen=True)
class CollectorPlan:
    """One collector of a job, as the master must assemble it."""

    node_id: str
    slots: tuple[str, ...]
    """The inputs that are wired: ``images``, ``audio``, ``latents``, ``masks``."""
    consumed: bool
    """True where nodes of the last stage use it."""
    unsaved: tuple[str, ...] = ()
    """Those of `slots` that no output node of the last stage saves or shows: the master saves them."""
    on_missing: OnMissing = "error"
    save_prefix: str = ""
    """First part of the names of files in which all of `slots` are saved as they arrive; empty: only what is `unsaved` is."""


@dataclass(frozen=True)
class InputFile:
    """An input file of the prompt and the node that loads it."""

    node_id: str
    input: str
    file: FileRef
    value: str = ""
    """The literal that names the file in the prompt of the items that load it."""


@dataclass(frozen=True)
class JobRecord:
    """One submitted prompt; never changes after submission."""

    job_id: str
    """12 hexadecimal digits, new each time."""
    submitter: str
    priority: int
    """0 (last) to 9 (first), 5 by default."""
    items: int
    """All items that are known at submission, the last stage included; tiles come later and have the indexes from here on."""
    prompts: tuple[str, ...]
    """Hashes of the stage prompts; the texts are stored beside the record."""
    original_prompt_hash: str
    """The user's prompt, for image metadata."""
    collectors: tuple[CollectorPlan, ...] = ()
    edges: tuple[str, ...] = ()
    """Sink ids (``<node>~<slot>``) of edges that cross the cut to the last stage; item 0's value is used."""
    input_files: tuple[InputFile, ...] = ()
    extra_pnginfo: dict[str, Any] = field(default_factory=dict)
    """What ComfyUI writes into image metadata beside the prompt, such as the workflow."""
    requirement: Requirement | None = None
    last_requirement: Requirement | None = None
    has_prepare: bool = False
    """One item makes the image to upscale; it comes after the generated ones."""
    has_last_stage: bool = False
    grows: bool = False
    """Tiles will be added: the job is not done before its owner has said that there are no more."""
    tiles: TileStage | None = None
    resume_key: str = ""
    """Hash of everything that decides the result; equal keys may share a spool."""
    host: str = ""
    """Host of the submitter."""
    title: str = ""
    results: ResultsGoTo = "collector"
    frames: FramePlan = field(default_factory=FramePlan)
    """How its tensors travel."""
    echoes: bool = False
    """Whether workers pass on what ComfyUI says to its browser, and its history, because the submitter shows them as its own."""
    version: int = JOB_VERSION

    @property
    def generated(self) -> int:
        """Items before all that are fed: without the last stage, the one that prepares for tiles, and the tiles."""
        return self.items - self.has_last_stage - self.has_prepare

    @property
    def prepare_index(self) -> int | None:
        """Index of the item that makes the image to upscale."""
        return self.generated if self.has_prepare else None

    @property
    def last_index(self) -> int | None:
        """Index of the last stage."""
        return self.items - 1 if self.has_last_stage else None

    @property
    def first_tile(self) -> int:
        """Index of the first tile, once there are tiles; they follow all items that are known at submission."""
        return self.items

    @property
    def spare(self) -> Literal["", "all", "others"]:
        """Which items may fail for good without ending the job: none, all (but one must be left), or all but item 0.

        The last stage, and what comes between it and the others, take the values of crossing edges from item 0 alone.
        """
        if not self.collectors or any(collector.on_missing == "error" for collector in self.collectors):
            return ""
        return "others" if self.edges or (self.tiles and self.tiles.takes_first) else "all"


def item_id(job_id: str, index: int) -> str:
    """The Celery task id of an item."""
    return f"{job_id}-{index}"


def parse_item_id(text: str) -> tuple[str, int] | None:
    """Job and index in what `item_id` made; None for any other task id."""
    found = re.fullmatch(r"([0-9a-f]{12})-(\d+)", text, re.ASCII)
    return (found[1], int(found[2])) if found else None


# -- engine process -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RunRequest:
    """One item, ready to run: what a consumer sends to its engine process."""

    claim_id: str
    job_id: str
    index: int
    kind: ItemKind
    prompt: Prompt
    """The stage's prompt with the item's patches applied."""
    targets: tuple[str, ...]
    original_prompt: Prompt
    extra_pnginfo: dict[str, Any] = field(default_factory=dict)
    input_files: tuple[InputFile, ...] = ()
    feed: dict[str, dict[str, tuple[Value, ...]]] = field(default_factory=dict)
    """Items of `FED_KINDS` only: source node id -> slot -> list of values.

    Blobs of a tile lie there before it starts, and stay; those of the others appear while it runs, and are unlinked when they are read.
    """
    attempt: int = 1
    frames: FramePlan = field(default_factory=FramePlan)
    """How what the item gives is to travel."""
    echoes: bool = False
    """As `JobRecord.echoes`."""
    version: int = MESSAGE_VERSION


# -- wire ---------------------------------------------------------------------------------------------------------------
_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


def dump(record: Any) -> str:
    """A record as compact JSON."""
    return _adapter(type(record)).dump_json(record).decode()


def load(cls: type[T], text: str | bytes) -> T:
    """The record of class ``cls`` in ``text``.

    Raises:
        MessageVersionUnknown: written by another version of this project, or not such a record at all.
    """
    try:
        record: Any = _adapter(cls).validate_json(text)
    except ValidationError as error:
        raise MessageVersionUnknown(kind=cls.__name__, version=_version_of(text), known=[_known_version(cls)]) from error
    if getattr(record, "version", MESSAGE_VERSION) != _known_version(cls):
        raise MessageVersionUnknown(kind=cls.__name__, version=record.version, known=[_known_version(cls)])
    return cast("T", record)


def to_plain(record: Any) -> Any:
    """A record as plain dicts, lists and scalars (for msgpack frames)."""
    return _adapter(type(record)).dump_python(record, mode="json")


def from_plain(cls: type[T], plain: Any) -> T:
    """The record that `to_plain` took apart; errors as `load`."""
    try:
        return cast("T", _adapter(cls).validate_python(plain))
    except ValidationError as error:
        raise MessageVersionUnknown(kind=cls.__name__, version="?", known=[_known_version(cls)]) from error


def _known_version(cls: Any) -> int:
    """The one that this code writes."""
    return int(getattr(cls, "version", MESSAGE_VERSION))  # the field's default


def _version_of(text: str | bytes) -> Any:
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError):
        return "?"
    return plain.get("version", "?") if isinstance(plain, dict) else "?"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(value: Any) -> str:
    """First 32 hex digits of SHA-256 over `canonical_json`; used for prompts, requirements and capabilities."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:32]


def apply_patches(prompt: Prompt, patches: tuple[Patch, ...]) -> Prompt:
    """A copy of ``prompt`` with each patch's literal in place; nodes without patches are shared.

    Raises:
        PromptMalformed: a patch names a node that the prompt does not have.
    """
    patched = dict(prompt)
    for patch in patches:
        if patch.node_id not in patched:
            raise PromptMalformed(source="the stored prompt", reason=f"node {patch.node_id} is missing")
        node = patched[patch.node_id]
        patched[patch.node_id] = {**node, "inputs": {**node["inputs"], patch.input: patch.value}}
    return patched
