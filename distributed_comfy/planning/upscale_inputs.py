"""The inputs of an upscale: its links by type, its numbers checked, so that nothing is queued that would fail tile by tile."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast, get_args

from distributed_comfy.errors import UpscaleInputWrong
from distributed_comfy.planning.facts import SEED_LIMIT, ClassFacts
from distributed_comfy.planning.values import literal_behind
from distributed_comfy.tile_stage import Determinism, Mode, SeamFixKind, TileGeometry, TileSeeds
from distributed_comfy.workflow.classes import COLLECTOR_CLASS, COLLECTOR_SLOTS, SWITCHED_ON
from distributed_comfy.workflow.graph import Graph, Link, as_link

IMAGE_INPUT = "upscaled_image"
LINKED = {IMAGE_INPUT: "IMAGE", "model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "vae": "VAE"}
"""Inputs that a node must feed -> type."""
SAMPLING = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")
"""Inputs that go to the sampler of each tile as they are: literals, or links."""
WHOLE = {
    "seed": (None, 0, SEED_LIMIT), "steps": (20, 1, 10_000), "tile_width": (512, 64, 2048), "tile_height": (512, 64, 2048),
    "padding": (32, 0, 256), "mask_blur": (8, 0, 256), "seam_fix_width": (64, 8, 2048), "seam_fix_mask_blur": (8, 0, 256),
    "seam_fix_padding": (16, 0, 256),
}  # fmt: skip
"""Whole numbers: default (None: it must be given), least, most."""
REAL = {"cfg": (8.0, 0.0, 100.0), "denoise": (0.5, 0.0, 1.0), "seam_fix_denoise": (0.35, 0.0, 1.0)}
SWITCHES = {"force_uniform_tiles": True, "tiled_decode": False}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "mode": get_args(Mode), "seam_fix": get_args(SeamFixKind), "tile_seeds": get_args(TileSeeds), "deterministic": get_args(Determinism),
}  # fmt: skip
"""Words; the first is the default."""
_OFF = (False, "false", "False")


@dataclass(frozen=True)
class UpscaleInputs:
    """An upscale as planning needs it."""

    links: Mapping[str, Link]
    """Those of `LINKED`."""
    sampling: Mapping[str, Any]
    """Those of `SAMPLING`; a link only where the run alone knows the value."""
    tiled_decode: bool
    geometry: TileGeometry
    deterministic: Determinism

    @property
    def seed(self) -> str:
        """In decimal; empty where the run alone knows it."""
        return "" if as_link(self.sampling["seed"]) else str(self.sampling["seed"])


def read_upscale(graph: Graph, node_id: str, facts: ClassFacts) -> UpscaleInputs:
    """Check an upscale whose seeds and values are literals already.

    Raises:
        UpscaleInputWrong: a link is missing or of another type, or a value is out of range or known only to the run.
    """
    reader = _Reader(graph, node_id, facts)
    links = {name: reader.link(name, kind) for name, kind in LINKED.items()}
    sampling = {name: reader.sampling(name) for name in SAMPLING}
    geometry = _geometry(reader, sampling["denoise"])
    if geometry.tile_seeds == "offset" and as_link(sampling["seed"]):
        reader.refuse("seed", "known only when it runs", "typed in where tile_seeds is offset")
    return UpscaleInputs(
        links, sampling, reader.switch("tiled_decode"), geometry, cast("Determinism", reader.choice("deterministic"))
    )


def _geometry(reader: _Reader, denoise: Any) -> TileGeometry:
    width, height = reader.whole("tile_width"), reader.whole("tile_height")
    narrow = (min(width, height) + 4) // 8 * 8
    found = TileGeometry(
        tile_width=width,
        tile_height=height,
        padding=reader.whole("padding"),
        mask_blur=reader.whole("mask_blur", most=narrow, why=f", the tile's shorter side being {narrow}"),
        uniform=reader.switch("force_uniform_tiles"),
        mode=cast("Mode", reader.choice("mode")),
        seam_fix=cast("SeamFixKind", reader.choice("seam_fix")),
        seam_fix_denoise=reader.real("seam_fix_denoise"),
        seam_fix_width=reader.whole("seam_fix_width"),
        seam_fix_mask_blur=reader.whole("seam_fix_mask_blur"),
        seam_fix_padding=reader.whole("seam_fix_padding"),
        tile_seeds=cast("TileSeeds", reader.choice("tile_seeds")),
        denoise=None if as_link(denoise) else denoise,
    )
    _check_seam_fix(reader, found, narrow)
    return found


def _check_seam_fix(reader: _Reader, geometry: TileGeometry, narrow: int) -> None:
    """Two bands, or two half tiles, side by side must not meet."""
    if geometry.seam_fix == "band_pass":
        width = reader.whole("seam_fix_width", most=narrow, why=f", the tile's shorter side being {narrow}")
        most = min(width, narrow - width) // 2 * 2
        reader.whole("seam_fix_mask_blur", most=most, why=f", with tiles of {narrow} and strips of {width}")
    elif geometry.seam_fix != "none":
        reader.whole("seam_fix_mask_blur", most=narrow // 2, why=", half of the tile's shorter side")


class _Reader:
    """Reads one input after the other."""

    def __init__(self, graph: Graph, node_id: str, facts: ClassFacts) -> None:
        self._graph, self._node_id, self._facts = graph, node_id, facts
        self._inputs = graph.prompt[node_id]["inputs"]

    def refuse(self, name: str, value: str, expected: str) -> NoReturn:
        raise UpscaleInputWrong(node_id=self._node_id, input=name, value=value, expected=expected)

    def link(self, name: str, kind: str) -> Link:
        found = self._graph.links[self._node_id].get(name)
        if found is None:
            given = self._inputs.get(name)
            self.refuse(name, "missing" if given is None else repr(given), f"linked to a node that gives {kind}")
        class_type = self._graph.class_of(found.node_id)
        given = self._facts.output_type(class_type, found.slot)
        if class_type == COLLECTOR_CLASS:
            slot = COLLECTOR_SLOTS[found.slot] if found.slot < len(COLLECTOR_SLOTS) else ""
            if kind != "IMAGE" or slot != "images" or not as_link(self._graph.prompt[found.node_id]["inputs"].get(slot)):
                self.refuse(name, f"linked to {slot or found.slot} of collector {found.node_id}", f"linked to wired {kind}")
        elif self._facts.contradicts(class_type, found.slot, kind):
            self.refuse(name, f"linked to {given or 'nothing'} of node {found.node_id} ({class_type})", f"linked to {kind}")
        return found

    def sampling(self, name: str) -> Any:
        """A checked literal, or the link."""
        value = self._literal(name)
        if as_link(value):
            return value
        if name in WHOLE:
            return self.whole(name)
        if name in REAL:
            return self.real(name)
        if not isinstance(value, str) or not value:
            self.refuse(name, "missing" if value is None else repr(value), "one of the names that KSampler lists")
        return value

    def whole(self, name: str, *, most: int | None = None, why: str = "") -> int:
        default, least, limit = WHOLE[name]
        most = limit if most is None else min(limit, most)
        value = self._known(name, default)
        number = _whole(value)
        if number is None or not least <= number <= most:
            self.refuse(name, repr(value), f"a whole number from {least} to {most}{why}")
        return number

    def real(self, name: str) -> float:
        default, least, most = REAL[name]
        value = self._known(name, default)
        number = _real(value)
        if number is None or not least <= number <= most:
            self.refuse(name, repr(value), f"a number from {least:g} to {most:g}")
        return number

    def switch(self, name: str) -> bool:
        value = self._known(name, SWITCHES[name])
        if value not in (*SWITCHED_ON, *_OFF):  # 1 and 0 are among them
            self.refuse(name, repr(value), "true or false")
        return value in SWITCHED_ON

    def choice(self, name: str) -> str:
        known: Sequence[str] = CHOICES[name]
        value = self._known(name, known[0])
        if value not in known:
            self.refuse(name, repr(value), f"one of {', '.join(known)}")
        return str(value)

    def _known(self, name: str, default: Any) -> Any:
        value = self._literal(name)
        if link := as_link(value):
            feeder = f"{link.node_id} ({self._graph.class_of(link.node_id)})"
            self.refuse(name, f"linked to node {feeder}, which gives it only when it runs", "typed in")
        if value is None and default is None:
            self.refuse(name, "missing", "a whole number")
        return default if value is None else value

    def _literal(self, name: str) -> Any:
        return literal_behind(self._graph.prompt, self._inputs.get(name))


def _whole(value: Any) -> int | None:
    """ComfyUI takes a number in quotes too."""
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal() and value.strip().isascii():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
