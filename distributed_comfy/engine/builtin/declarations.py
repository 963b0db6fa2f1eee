"""What node classes declare about their inputs and outputs, read the way ComfyUI reads it."""
from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed_comfy.messages import Capability


@dataclass(frozen=True)
class InputDeclaration:
    """One input of a node class."""

    name: str
    category: str
    """``required``, ``optional`` or ``hidden``."""
    kind: Any
    """Type name, the list of allowed values, or the name of a hidden value."""
    options: Mapping[str, Any]
    """``min``, ``max``, ``default``, ``image_upload``..."""

    @property
    def choices(self) -> list[Any] | None:
        """The allowed values, for an input that offers a list."""
        return list(self.kind) if isinstance(self.kind, (list, tuple)) else None


def is_link(value: Any) -> bool:
    """Whether an input's value is a link, ``[node id, slot]``, and not a literal."""
    return isinstance(value, list)


def declared_inputs(node_class: Any) -> dict[str, InputDeclaration]:
    """All inputs of a class by name, asked afresh, because lists of files change."""
    declared = {}
    for category, inputs in node_class.INPUT_TYPES().items():
        for name, entry in inputs.items():
            kind, options = (entry, {}) if isinstance(entry, str) else (entry[0], entry[1] if len(entry) > 1 else {})
            declared[name] = InputDeclaration(name, category, kind, options)
    return declared


def self_validated(node_class: Any) -> frozenset[str]:
    """Inputs that the class checks itself (``VALIDATE_INPUTS``), for which ranges and lists do not count."""
    check = getattr(node_class, "VALIDATE_INPUTS", None)
    return frozenset(inspect.signature(check).parameters) if check is not None else frozenset()


def is_output(node_class: Any) -> bool:
    """Whether the class is executed for what it does and not for what it gives."""
    return getattr(node_class, "OUTPUT_NODE", False) is True


def describe_classes(classes: Mapping[str, Any], capability: Capability) -> Capability:
    """``capability`` with everything that the node classes say.

    Args:
        classes: class_type -> class.
        capability: engine, device and tags are kept.
    """
    lists: dict[tuple[str, ...], int] = {}
    choices: dict[str, dict[str, int]] = {}
    files: dict[str, dict[str, str]] = {}
    limits: dict[str, dict[str, str]] = {}
    for class_type, node_class in sorted(classes.items()):
        for declared in declared_inputs(node_class).values():
            if declared.options.get("image_upload"):
                files.setdefault(class_type, {})[declared.name] = "input"
            elif declared.choices is not None and declared.name not in self_validated(node_class):
                values = tuple(str(value).replace("\\", "/") for value in declared.choices)
                choices.setdefault(class_type, {})[declared.name] = lists.setdefault(values, len(lists))
            if declared.kind == "INT" and declared.category != "hidden" and "max" in declared.options:
                limits.setdefault(class_type, {})[declared.name] = str(declared.options["max"])
    return Capability(
        engine=capability.engine,
        engine_version=capability.engine_version,
        device=capability.device,
        device_class=capability.device_class,
        tags=capability.tags,
        node_classes=tuple(sorted(classes)),
        output_classes=tuple(sorted(name for name, node_class in classes.items() if is_output(node_class))),
        choice_lists=tuple(lists),
        choices=choices,
        file_inputs=files,
        seed_limits=limits,
        output_types={name: tuple(str(kind) for kind in node_class.RETURN_TYPES) for name, node_class in sorted(classes.items())},
    )
