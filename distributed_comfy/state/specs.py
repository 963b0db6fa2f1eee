"""Packs item specs for the table: what all items of a stage share is stored once, so 100 000 pending items stay small."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distributed_comfy.messages import ItemSpec, Patch, canonical_json, dump, load


def pack_specs(specs: Sequence[ItemSpec], known: Sequence[str] = ()) -> tuple[list[str], list[tuple[int, str]]]:
    """Templates (each an ItemSpec without its own values), and per item its index and a short JSON list.

    The list is ``[template number, seed, node, input, value, node, input, value...]``.

    Args:
        known: templates that the job has already; they keep their numbers, new ones follow them.
    """
    templates: dict[ItemSpec, int] = {load(ItemSpec, text): number for number, text in enumerate(known)}
    packed: list[tuple[int, str]] = []
    for spec in specs:
        number = templates.setdefault(replace(spec, index=0, seed="", patches=()), len(templates))
        flat: list[Any] = [number, spec.seed]
        for patch in spec.patches:
            flat += [patch.node_id, patch.input, patch.value]
        packed.append((spec.index, canonical_json(flat)))
    return [dump(template) for template in templates], packed


def has_template(templates: Sequence[str], packed: str | bytes) -> bool:
    """Whether these are enough to unpack the spec; where not, they were read before its job got this item."""
    return bool(json.loads(packed)[0] < len(templates))


def unpack_spec(templates: Sequence[str], index: int, packed: str | bytes) -> ItemSpec:
    """The spec that `pack_specs` packed."""
    number, seed, *flat = json.loads(packed)
    patches = tuple(Patch(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3))
    return replace(load(ItemSpec, templates[number]), index=index, seed=seed, patches=patches)
