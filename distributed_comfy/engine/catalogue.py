"""How ComfyUI declares the inputs of node classes, and the parts of a capability that are read off that."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from distributed_comfy.messages import Prompt

COMBO = "COMBO"
UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload", "upload")
"""Marks of inputs whose value is a file of the input folder."""

NO_MODELS = frozenset({"custom_nodes", "configs"})
"""Folders that ComfyUI knows beside those of models."""

Declaration = tuple[Any, Mapping[str, Any]]
"""Type (a name, or the list of values) and options of one input."""


def declarations(inputs: Mapping[str, Any]) -> dict[str, Declaration]:
    """Required and optional inputs of what ``INPUT_TYPES`` gives, or ``input`` of ``/object_info``."""
    return {
        name: (declared[0], declared[1] if len(declared) > 1 and isinstance(declared[1], Mapping) else {})
        for category in ("required", "optional")
        for name, declared in (inputs.get(category) or {}).items()
        if isinstance(declared, list | tuple) and declared
    }


def listed_choices(declaration: Declaration) -> list[Any] | None:
    """The values that an input offers; None for an input that is no list, or whose list lives in the browser."""
    kind, options = declaration
    if options.get("remote") or options.get("remote_combo"):
        return None
    if isinstance(kind, list | tuple):
        return list(kind)
    if kind == COMBO and isinstance(options.get("options"), list | tuple):
        return list(options["options"])
    return None


def is_upload(declaration: Declaration) -> bool:
    """True for an input that names a file of the input folder."""
    _, options = declaration
    return any(options.get(mark) for mark in UPLOADS) and options.get("image_folder") in (None, "input")


def folder_shown(values: Sequence[str], files: Mapping[str, Sequence[str]], listed: Sequence[str] = ()) -> str:
    """The model folder whose files are among an input's values; the one with the most of them, empty for none.

    Args:
        values: that the input offers; nodes add some of their own to a folder's files.
        files: of each folder.
        listed: folders that the input's class is known to list; where none is, all of them may be meant.
    """
    offered = set(values)
    shown = [name for name in listed or files if (names := files.get(name)) and offered.issuperset(names)]
    if shown:
        return max(shown, key=lambda name: len(files[name]))
    return next((name for name in listed if not values and not files.get(name)), "")


def type_names(kinds: Iterable[Any]) -> tuple[str, ...]:
    """Names of types of outputs; a list of values counts as ``COMBO``."""
    return tuple(str(kind) if isinstance(kind, str) else COMBO for kind in kinds)


def normalised(name: str) -> str:
    """A path as all systems write it in records: with ``/``."""
    return name.replace("\\", "/")


def spelled(value: str, options: Iterable[Any]) -> str:
    """A listed value as the list writes it: ``sub/a.safetensors`` is ``sub\\a.safetensors`` on Windows; others as they are."""
    spellings = {normalised(option): option for option in options if isinstance(option, str)}
    return spellings.get(normalised(value), value)


def path_literals(prompt: Prompt) -> Iterator[tuple[dict[str, Any], str, str]]:
    """(node, input, value) of all literals that may be a path."""
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and ("/" in value or "\\" in value) and "\n" not in value:
                yield node, name, value


class Catalogue:
    """Collects inputs of many classes; equal value lists are kept once."""

    def __init__(self) -> None:
        self._lists: dict[tuple[str, ...], int] = {}
        self._choices: dict[str, dict[str, int]] = {}
        self._file_inputs: dict[str, dict[str, str]] = {}
        self._seed_limits: dict[str, dict[str, str]] = {}
        self._model_lists: dict[str, int] = {}
        self._model_inputs: dict[str, dict[str, str]] = {}

    def add_choices(self, place: tuple[str, str], values: Sequence[str]) -> None:
        """A (class, input) demands one of these values."""
        self._choices.setdefault(place[0], {})[place[1]] = self._index(values)

    def add_model_folder(self, folder: str, names: Sequence[str]) -> None:
        """A folder of models holds these files."""
        if names:
            self._model_lists[folder] = self._index(names)

    def add_model_input(self, place: tuple[str, str], folder: str) -> None:
        """An input lists the files of a folder of models; nothing for no folder."""
        if folder:
            self._model_inputs.setdefault(place[0], {})[place[1]] = folder

    def add_file_input(self, class_name: str, input_name: str) -> None:
        """An input names a file of the input folder."""
        self._file_inputs.setdefault(class_name, {})[input_name] = "input"

    def add_seed_limit(self, place: tuple[str, str], limit: int) -> None:
        """A (class, input) takes whole numbers up to ``limit``."""
        self._seed_limits.setdefault(place[0], {})[place[1]] = str(limit)

    def fields(self) -> dict[str, Any]:
        """The collected fields of a `Capability`."""
        return {
            "choice_lists": tuple(self._lists),
            "choices": self._choices,
            "file_inputs": self._file_inputs,
            "seed_limits": self._seed_limits,
            "model_lists": self._model_lists,
            "model_inputs": self._model_inputs,
        }

    def _index(self, values: Sequence[str]) -> int:
        return self._lists.setdefault(tuple(normalised(value) for value in values), len(self._lists))
