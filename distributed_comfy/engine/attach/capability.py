"""What a running ComfyUI can do, read from ``/object_info`` and ``/system_stats``."""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from distributed_comfy.engine.attach.pack_words import PackFacts
from distributed_comfy.engine.catalogue import Catalogue, Declaration, declarations, folder_shown, is_upload, listed_choices, type_names
from distributed_comfy.engine.flags import telling_flags
from distributed_comfy.messages import Capability
from distributed_comfy.workflow.classes import (
    AUDIO_DIVIDER_CLASS,
    COLLECTOR_CLASS,
    EMPTY_IMAGE_CLASS,
    IMAGE_DIVIDER_CLASS,
    MODEL_NAME_CLASS,
    SINK_CLASS,
)
from distributed_comfy.workflow.services import capturing, running, supplying

LISTINGS = {("LoadLatent", "latent"): "input"}
"""Stock inputs that list the input folder without a mark that says so."""

OF_PACKS = frozenset({IMAGE_DIVIDER_CLASS, AUDIO_DIVIDER_CLASS, EMPTY_IMAGE_CLASS})
"""Classes of this project that other packs have as well, with the same meaning.

All others are replaced by planning, or put in by it: should ComfyUI list such a name, what it has is not what is meant.
"""

STOCK_NODES = {
    capturing("IMAGE"): ("PreviewImage",),
    capturing("MASK"): ("MaskToImage", "PreviewImage"),
    capturing("LATENT"): ("SaveLatent", "PreviewAny"),
    **{capturing(kind): ("PreviewAny",) for kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")},
    supplying("IMAGE"): ("LoadImage", "ImageBatch"),
    supplying("MASK"): ("LoadImage", "ImageBatch", "ImageToMask"),
    supplying("LATENT"): ("LoadLatent",),
    **{supplying(kind): () for kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")},
    running(COLLECTOR_CLASS): (),
    running(MODEL_NAME_CLASS): ("PreviewAny",),
}
"""Service -> the classes of ComfyUI that it takes here.

Audio is not among them: SaveAudio writes FLAC of 16 bits, which is neither exact nor readable without another library.
"""

OUR_CATEGORY = "distributed/internal"
"""Of the nodes that the node pack of this project has, and which the nodes of other packs are not taken for."""


class NodeListing:
    """The node classes of one answer of ``/object_info``, and the model files of the same moment."""

    def __init__(self, info: Mapping[str, Any], model_files: Mapping[str, Sequence[str]] | None = None) -> None:
        """Args:
        info: the answer.
        model_files: model folder -> names of its files.
        """
        self.info = info
        self._model_files = model_files or {}

    def declared(self, class_type: str) -> dict[str, Declaration]:
        """Inputs of a class."""
        return declarations(self.info[class_type].get("input") or {})

    def output_type(self, class_type: str, slot: int) -> str:
        """Type of an output; empty where there is none."""
        types = self.output_types.get(class_type, ())
        return types[slot] if slot < len(types) else ""

    def is_stock(self, class_type: str) -> bool:
        """Whether ComfyUI itself brings the class: such a class drops inputs that it does not know."""
        module = str(self.info[class_type].get("python_module", ""))
        return module == "nodes" or module.startswith(("comfy_extras.", "comfy_api_nodes."))

    @cached_property
    def output_types(self) -> dict[str, tuple[str, ...]]:
        """Class -> types of its outputs."""
        return {name: types for name, about in self.info.items() if (types := type_names(about.get("output") or ()))}

    @cached_property
    def output_classes(self) -> frozenset[str]:
        """Classes for whose sake ComfyUI runs prompts."""
        return frozenset(name for name, about in self.info.items() if about.get("output_node"))

    def services(self) -> tuple[str, ...]:
        """What of `Requirement.services` can be done with these classes."""
        found = {service for service, classes in STOCK_NODES.items() if self.info.keys() >= set(classes)}
        found |= {running(name) for name in OF_PACKS if name in self.info}
        return tuple(sorted(found))

    @property
    def has_pack(self) -> bool:
        """Whether the node pack of this project is there, of whatever version."""
        return bool(self.info.get(SINK_CLASS, {}).get("category") == OUR_CATEGORY)

    def fields(self) -> dict[str, Any]:
        """Fields of a `Capability` that depend on the classes."""
        catalogue = Catalogue()
        for folder, names in self._model_files.items():
            catalogue.add_model_folder(folder, names)
        for name in sorted(self.info):
            for input_name, declaration in self.declared(name).items():
                self._read_input(catalogue, (name, input_name), declaration)
        return {
            "node_classes": tuple(sorted(self.info)),
            "output_classes": tuple(sorted(self.output_classes)),
            "output_types": self.output_types,
            **catalogue.fields(),
        }

    def _read_input(self, catalogue: Catalogue, place: tuple[str, str], declaration: Declaration) -> None:
        kind, options = declaration
        if is_upload(declaration) or place in LISTINGS:
            catalogue.add_file_input(*place)
            return
        if kind == "INT" and isinstance(options.get("max"), int):
            catalogue.add_seed_limit(place, options["max"])
        values = listed_choices(declaration)
        if values is not None and all(isinstance(value, str) for value in values):
            catalogue.add_choices(place, values)
            catalogue.add_model_input(place, folder_shown(values, self._model_files))


def describe(listing: NodeListing, stats: Mapping[str, Any], tags: Collection[str], pack: PackFacts | None = None) -> Capability:
    """The capability of a worker that drives this ComfyUI.

    Args:
        pack: of the node pack there, where it carries everything exactly: then nothing is lacking, and what comes from there is comparable
            with what comes from a worker with such a ComfyUI of its own.
    """
    system = stats.get("system") or {}
    device = str((first_device(stats)).get("name", "unknown device"))
    version = str(system.get("comfyui_version", "unknown"))
    flags = telling_flags([str(word) for word in system.get("argv") or ()])
    parts = [f"attach: {device}", f"torch {system.get('pytorch_version', '?')}", f"ComfyUI {version}", *([flags] if flags else [])]
    return Capability(
        engine="attach",
        engine_version=version,
        device=device,
        # Images of 8 bits are comparable with those of such workers only, whatever the device.
        device_class=pack.device_class if pack else ", ".join([*parts, "images of 8 bits"]),
        tags=tuple(tags),
        services=None if pack else listing.services(),
        **listing.fields(),
    )


def first_device(stats: Mapping[str, Any]) -> Mapping[str, Any]:
    """The device that ComfyUI computes on; empty where it names none."""
    devices = stats.get("devices") or [{}]
    found: Mapping[str, Any] = devices[0]
    return found
