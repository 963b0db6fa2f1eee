"""Which model files and node classes a prompt needs, which worker lacks which, and where a file belongs; and what all workers have."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distributed_comfy.config_file import nearest
from distributed_comfy.messages import Capability, Requirement
from distributed_comfy.planning.requirements import is_model_name, offers

_USUAL_FOLDERS = {
    "ckpt_name": "checkpoints",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "clip_name3": "text_encoders",
    "control_net_name": "controlnet",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
    "lora_name": "loras",
    "style_model_name": "style_models",
    "unet_name": "diffusion_models",
    "vae_name": "vae",
}
"""Input -> folder, for inputs about which no worker tells."""
_USUAL_FOLDERS_OF_CLASSES = {"CLIPVisionLoader": "clip_vision", "UpscaleModelLoader": "upscale_models"}

Live = Mapping[str, Capability]
"""Worker name -> its capability."""


@dataclass(frozen=True)
class Choice:
    """A value that a prompt needs a worker to offer."""

    folder: str
    """Of the models (``checkpoints``); empty for a value that is no model, and where nobody knows."""
    name: str
    """With ``/`` between folders."""
    class_type: str
    input: str
    lacked_by: tuple[str, ...]
    """Workers, sorted."""
    near: str = ""
    """What some worker has instead and may be meant; empty where nothing is near."""


@dataclass(frozen=True)
class Needs:
    """What a prompt needs, and who lacks it."""

    models: tuple[Choice, ...]
    """Sorted by folder and name; also those that every worker has."""
    values: tuple[Choice, ...]
    """Values of other lists, such as samplers; only those that some worker lacks."""
    classes: dict[str, tuple[str, ...]]
    """Node class -> the workers that lack it; only those that some worker lacks."""

    @property
    def missing(self) -> bool:
        """Whether any worker lacks anything."""
        return bool(self.classes or self.values or any(model.lacked_by for model in self.models))


def find_needs(requirement: Requirement, live: Live) -> Needs:
    """What each live worker has and lacks of what a prompt needs.

    Args:
        requirement: of all its stages.
        live: workers to look at.
    """
    choices = [_choice(live, *place) for place in requirement.choices]
    models = [choice for choice in choices if choice.folder or is_model_name(choice.name)]
    lacked = {name: tuple(sorted(worker for worker in live if name not in live[worker].node_classes)) for name in requirement.node_classes}
    return Needs(
        models=tuple(sorted(models, key=lambda choice: (choice.folder, choice.name, choice.class_type, choice.input))),
        values=tuple(choice for choice in choices if choice not in models and choice.lacked_by),
        classes={name: workers for name, workers in lacked.items() if workers},
    )


def all_models(live: Live) -> dict[tuple[str, str], tuple[str, ...]]:
    """(folder, name) of every model file that some worker has -> those workers, all sorted."""
    owners: dict[tuple[str, str], list[str]] = {}
    for worker, capability in sorted(live.items()):
        for folder, names in folders_of(capability).items():
            for name in names:
                owners.setdefault((folder, name), []).append(worker)
    return {place: tuple(owners[place]) for place in sorted(owners)}


def folders_of(capability: Capability) -> dict[str, tuple[str, ...]]:
    """Model folder -> names of its files."""
    return {folder: capability.choice_lists[index] for folder, index in sorted(capability.model_lists.items())}


def _choice(live: Live, class_type: str, input_name: str, value: str) -> Choice:
    folder = _folder(live, class_type, input_name, value)
    lacked_by = tuple(sorted(name for name, capability in live.items() if not _has(capability, class_type, input_name, value, folder)))
    return Choice(folder, value, class_type, input_name, lacked_by, _near(live, class_type, input_name, value) if lacked_by else "")


def _folder(live: Live, class_type: str, input_name: str, value: str) -> str:
    """The folder of an input: as a worker says, else where a file of this name lies, else the usual one."""
    for capability in live.values():
        if folder := capability.model_inputs.get(class_type, {}).get(input_name):
            return folder
    if not is_model_name(value):
        return ""
    holding = [folder for capability in live.values() for folder, names in folders_of(capability).items() if value in names]
    return next(iter(holding), "") or _USUAL_FOLDERS_OF_CLASSES.get(class_type, "") or _USUAL_FOLDERS.get(input_name, "")


def _has(capability: Capability, class_type: str, input_name: str, value: str, folder: str) -> bool:
    """Where a worker lacks the node class, what lies in the folder decides, if that is known."""
    if capability.choices.get(class_type, {}).get(input_name) is not None or not (folder and capability.model_lists):
        return offers(capability, class_type, input_name, value)
    return value in folders_of(capability).get(folder, ())


def _near(live: Live, class_type: str, input_name: str, value: str) -> str:
    """The file of the same name in another subfolder, else the most similar name that some worker offers here."""
    offered: dict[str, None] = {}
    for capability in live.values():
        index = capability.choices.get(class_type, {}).get(input_name)
        offered |= dict.fromkeys(capability.choice_lists[index] if index is not None else ())
    offered.pop(value, None)
    base = value.rpartition("/")[2]
    return next((name for name in offered if name.rpartition("/")[2] == base), "") or nearest(value, offered)
