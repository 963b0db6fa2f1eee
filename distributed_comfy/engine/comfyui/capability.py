"""What a running tree can do, read from its node classes."""
from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from distributed_comfy.engine.comfyui.choices import (
    Declaration,
    combos_are_validated,
    input_declarations,
    is_output_node,
    is_upload,
    listed_choices,
    normalised,
    output_types,
    self_validated_inputs,
)
from distributed_comfy.engine.comfyui.model_folders import FolderListings
from distributed_comfy.engine.comfyui.tree import ComfyTree

log = logging.getLogger(__name__)

PROBE_NAME = "distributed-comfy-probe"
PROBE_SUFFIXES = (
    ".png", ".jpg", ".webp", ".gif", ".mp4", ".webm", ".wav", ".mp3", ".flac", ".latent", ".glb", ".obj", ".json", ".txt", ".npy",
    ".safetensors",
)  # fmt: skip
"""Kinds of files that nodes list from the input folder."""


class CapabilityReader:
    """Reads node classes into the parts of a `Capability` that depend on them."""

    def __init__(self, tree: ComfyTree, input_folder: Path) -> None:
        self._tree = tree
        self._combos_count = combos_are_validated(tree.execution, tree.nodes)
        self._input_listings = self._find_input_listings(input_folder)
        self._folders = FolderListings(tree.folder_paths)

    def read(self) -> dict[str, Any]:
        """Fields of a `Capability`: node_classes, output_classes, choices, choice_lists, file_inputs, seed_limits, output_types,
        model_lists, model_inputs."""
        began = time.monotonic()
        classes = dict(self._tree.nodes.NODE_CLASS_MAPPINGS)
        catalogue = _Catalogue()
        self._tree.forget_listings()
        with self._one_listing_per_folder(), self._folders.noted():
            for folder, names in self._folders.read().items():
                catalogue.add_model_folder(folder, names)
            for name, node_class in sorted(classes.items()):
                self._read_class(catalogue, name, node_class)
        log.debug("read %d node classes in %.2f s", len(classes), time.monotonic() - began)
        return {
            "node_classes": tuple(sorted(classes)),
            "output_classes": tuple(sorted(name for name, node_class in classes.items() if is_output_node(node_class))),
            "output_types": {name: types for name, node_class in classes.items() if (types := output_types(node_class))},
            **catalogue.fields(),
        }

    def _one_listing_per_folder(self) -> AbstractContextManager[Any]:
        return getattr(self._tree.folder_paths, "cache_helper", None) or nullcontext()

    def _read_class(self, catalogue: _Catalogue, name: str, node_class: Any) -> None:
        exempt = self_validated_inputs(node_class)
        declarations = input_declarations(node_class)
        asked_for = self._folders.take()
        for input_name, declaration in declarations.items():
            if is_upload(declaration) or (name, input_name) in self._input_listings:
                catalogue.add_file_input(name, input_name)
            elif exempt is not None and input_name not in exempt:
                self._read_input(catalogue, (name, input_name), declaration, asked_for)

    def _read_input(self, catalogue: _Catalogue, place: tuple[str, str], declaration: Declaration, asked_for: Sequence[str]) -> None:
        kind, options = declaration
        if kind == "INT" and isinstance(options.get("max"), int):
            catalogue.add_seed_limit(place, options["max"])
            return
        if isinstance(kind, str) and not self._combos_count:
            return
        values = listed_choices(declaration)
        if values is not None and all(isinstance(value, str) for value in values):
            catalogue.add_choices(place, values)
            catalogue.add_model_input(place, self._folders.shown_by(values, asked_for))

    def _find_input_listings(self, folder: Path) -> frozenset[tuple[str, str]]:
        """(class, input) of lists that show the files of the input folder; many nodes do not mark them as uploads."""
        with _probe_files(folder) as names:
            return frozenset(
                (name, input_name)
                for name, node_class in self._tree.nodes.NODE_CLASS_MAPPINGS.items()
                for input_name, declaration in input_declarations(node_class).items()
                if any(isinstance(value, str) and value in names for value in listed_choices(declaration) or ())
            )


@contextmanager
def _probe_files(folder: Path) -> Iterator[set[str]]:
    """Empty files of many kinds in ``folder``, for a moment."""
    paths = [folder / f"{PROBE_NAME}{suffix}" for suffix in PROBE_SUFFIXES]
    for path in paths:
        path.touch()
    try:
        yield {path.name for path in paths}
    finally:
        for path in paths:
            path.unlink()


class _Catalogue:
    """Collects inputs of many classes; equal value lists are kept once."""

    def __init__(self) -> None:
        self._lists: dict[tuple[str, ...], int] = {}
        self._choices: dict[str, dict[str, int]] = {}
        self._file_inputs: dict[str, dict[str, str]] = {}
        self._seed_limits: dict[str, dict[str, str]] = {}
        self._model_lists: dict[str, int] = {}
        self._model_inputs: dict[str, dict[str, str]] = {}

    def add_choices(self, place: tuple[str, str], values: list[str]) -> None:
        self._choices.setdefault(place[0], {})[place[1]] = self._index(values)

    def _index(self, values: Sequence[str]) -> int:
        return self._lists.setdefault(tuple(normalised(value) for value in values), len(self._lists))

    def add_model_folder(self, folder: str, names: Sequence[str]) -> None:
        if names:
            self._model_lists[folder] = self._index(names)

    def add_model_input(self, place: tuple[str, str], folder: str) -> None:
        if folder:
            self._model_inputs.setdefault(place[0], {})[place[1]] = folder

    def add_file_input(self, class_name: str, input_name: str) -> None:
        self._file_inputs.setdefault(class_name, {})[input_name] = "input"

    def add_seed_limit(self, place: tuple[str, str], limit: int) -> None:
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
