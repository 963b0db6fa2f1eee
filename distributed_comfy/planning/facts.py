"""What the known workers say about node classes, merged; with well-known names where no worker knows a class."""
from __future__ import annotations

from collections.abc import Iterable, Sequence

from distributed_comfy.messages import Capability
from distributed_comfy.workflow.classes import AUDIO_DIVIDER_CLASS, IMAGE_DIVIDER_CLASS, MODEL_NAME_CLASS

SEED_LIMIT = 2**64 - 1
"""Largest seed that ComfyUI samples with."""

_TRAVELLING = frozenset({"IMAGE", "MASK", "LATENT", "AUDIO", "INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
"""Types made of tensors, numbers and strings alone."""
_TENSORS = frozenset({"IMAGE", "MASK", "LATENT", "AUDIO"})
"""Those of them that are made of tensors."""
_SAVED_TYPES = frozenset({"IMAGE", "MASK", "AUDIO", "VIDEO"})
"""Types in which an output node can save or show what a collector collects."""
_OUTPUT_CLASSES = frozenset(
    {
        "SaveImage", "PreviewImage", "SaveImageWebsocket", "SaveAnimatedPNG", "SaveAnimatedWEBP", "SaveWEBM", "SaveVideo",
        "VHS_VideoCombine", "SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "PreviewAudio", "MaskPreview", "PreviewAny", "SaveLatent",
        "SaveSVGNode", "SaveGLB", "Preview3D", "Preview3DAnimation", IMAGE_DIVIDER_CLASS, AUDIO_DIVIDER_CLASS, MODEL_NAME_CLASS,
    }
)
"""Output nodes by name, for planning while no worker is there to ask."""
_SILENT_OUTPUTS = frozenset({IMAGE_DIVIDER_CLASS, AUDIO_DIVIDER_CLASS, MODEL_NAME_CLASS})
"""Output nodes that write nothing of what they are given."""
_FOLDERS = frozenset({"input", "output", "temp"})
"""Folders in which ComfyUI has the files that nodes name."""
_FILE_INPUTS = {
    ("LoadImage", "image"): "input",
    ("LoadImageMask", "image"): "input",
    ("LoadImageOutput", "image"): "output",
    ("LoadAudio", "audio"): "input",
    ("LoadVideo", "file"): "input",
    ("LoadLatent", "latent"): "input",
    ("VHS_LoadVideo", "video"): "input",
    ("VHS_LoadAudioUpload", "audio"): "input",
    ("Load3D", "model_file"): "input",
}
"""(class, input) -> folder, for planning while no worker is there to ask."""


class ClassFacts:
    """Answers about node classes, from the capabilities of one engine."""

    def __init__(self, capabilities: Iterable[Capability], engine: str = "") -> None:
        self.capabilities: Sequence[Capability] = tuple(one for one in capabilities if not engine or one.engine == engine)
        self._known = frozenset(name for one in self.capabilities for name in one.node_classes)
        self._outputs = frozenset(name for one in self.capabilities for name in one.output_classes)

    def is_known(self, class_type: str) -> bool:
        """True where some worker has the class."""
        return class_type in self._known

    def is_output(self, class_type: str) -> bool:
        """True for nodes that save or show something."""
        return class_type in self._outputs or (not self.is_known(class_type) and class_type in _OUTPUT_CLASSES)

    def output_type(self, class_type: str, slot: int) -> str:
        """Type of an output; empty where it is unknown or workers disagree."""
        declared = [types for one in self.capabilities if (types := one.output_types.get(class_type)) is not None]
        found = {types[slot] if slot < len(types) else "" for types in declared}
        return found.pop() if len(found) == 1 else ""

    def can_travel(self, class_type: str, slot: int) -> bool:
        """True where the output's value can be captured and handed to another process; an unknown type cannot."""
        return _TRAVELLING.issuperset(self._parts(class_type, slot))

    def is_tensor(self, class_type: str, slot: int) -> bool:
        """True where the output is an image, a mask, a latent or audio."""
        return _TENSORS.issuperset(self._parts(class_type, slot))

    def contradicts(self, class_type: str, slot: int, wanted: str) -> bool:
        """True where the output is known to be of another type."""
        parts = self._parts(class_type, slot)
        return parts.isdisjoint({"", "*", wanted})

    def _parts(self, class_type: str, slot: int) -> set[str]:
        return {part.strip() for part in self.output_type(class_type, slot).split(",")}

    def saves(self, class_type: str, input_type: str, *, latents: bool = False) -> bool:
        """True where a node of this class saves or shows an input of this type; an unknown type counts as one.

        Args:
            class_type: of the node.
            input_type: what it is given.
            latents: whether a latent is as good as what was made.
        """
        kept = input_type in _SAVED_TYPES or input_type in ("", "*") or (latents and input_type == "LATENT")
        return kept and self.is_output(class_type) and class_type not in _SILENT_OUTPUTS

    def offers_list(self, class_type: str, input_name: str) -> bool:
        """True where validation can demand a value of a list: some worker says so, or none knows the class."""
        lists = any(input_name in one.choices.get(class_type, {}) for one in self.capabilities)
        return (lists or not self.is_known(class_type)) and not self.file_folder(class_type, input_name)

    def file_folder(self, class_type: str, input_name: str) -> str:
        """Folder of the file that this input names; empty where it names none."""
        for one in self.capabilities:
            folder = one.file_inputs.get(class_type, {}).get(input_name)
            if folder in _FOLDERS:  # a worker of another host says it
                return folder
        return "" if self.is_known(class_type) else _FILE_INPUTS.get((class_type, input_name), "")

    def seed_limit(self, class_type: str, input_name: str) -> int:
        """Largest value that this input takes as a seed."""
        declared = [one.seed_limits.get(class_type, {}).get(input_name) for one in self.capabilities]
        return min([SEED_LIMIT, *(int(limit) for limit in declared if limit)])
