"""All node classes of this project under the names that prompts use."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from distributed_comfy.nodes.batches import AudioBatchDivider, DistributedEmptyImage, ImageBatchDivider
from distributed_comfy.nodes.collector import DistributedCollector
from distributed_comfy.nodes.context import NodeContext
from distributed_comfy.nodes.cut import DistributedSink, DistributedSource, bind
from distributed_comfy.nodes.seed import DistributedSeed
from distributed_comfy.nodes.tiles import (
    DistributedTileConditioning,
    DistributedTileImage,
    DistributedTileInputs,
    DistributedTileLatent,
    DistributedTileModel,
    DistributedTilePixels,
    DistributedTileRegions,
    TileCropper,
    Uncropped,
)
from distributed_comfy.nodes.upscale import UltimateSDUpscaleDistributed
from distributed_comfy.nodes.values import DistributedModelName, DistributedValue
from distributed_comfy.workflow.classes import (
    AUDIO_DIVIDER_CLASS,
    COLLECTOR_CLASS,
    EMPTY_IMAGE_CLASS,
    IMAGE_DIVIDER_CLASS,
    MODEL_NAME_CLASS,
    SEED_CLASS,
    SINK_CLASS,
    SOURCE_CLASS,
    TILE_CONDITIONING_CLASS,
    TILE_IMAGE_CLASS,
    TILE_INPUTS_CLASS,
    TILE_LATENT_CLASS,
    TILE_MODEL_CLASS,
    TILE_PIXELS_CLASS,
    TILE_REGIONS_CLASS,
    UPSCALE_CLASS,
    VALUE_CLASS,
)
from distributed_comfy.workflow.samplers import UsualSamplers

DISPLAY_NAMES = {
    SEED_CLASS: "Distributed Seed",
    COLLECTOR_CLASS: "Distributed Collector",
    VALUE_CLASS: "Distributed Value",
    MODEL_NAME_CLASS: "Distributed Model Name",
    IMAGE_DIVIDER_CLASS: "Image Batch Divider",
    AUDIO_DIVIDER_CLASS: "Audio Batch Divider",
    EMPTY_IMAGE_CLASS: "Distributed Empty Image",
    SINK_CLASS: "Distributed Sink (internal)",
    SOURCE_CLASS: "Distributed Source (internal)",
    UPSCALE_CLASS: "Ultimate SD Upscale Distributed (No Upscale)",
    TILE_REGIONS_CLASS: "Distributed Tile Regions (internal)",
    TILE_INPUTS_CLASS: "Distributed Tile Inputs (internal)",
    TILE_PIXELS_CLASS: "Distributed Tile Pixels (internal)",
    TILE_IMAGE_CLASS: "Distributed Tile Image (internal)",
    TILE_LATENT_CLASS: "Distributed Tile Latent (internal)",
    TILE_CONDITIONING_CLASS: "Distributed Tile Conditioning (internal)",
    TILE_MODEL_CLASS: "Distributed Tile Model (internal)",
}
"""class_type -> name in ComfyUI's editor."""
USER_CLASSES = frozenset(name for name, shown in DISPLAY_NAMES.items() if not shown.endswith("(internal)"))
"""Those that users put into their workflows."""


def declared_inputs(class_type: str) -> frozenset[str] | None:
    """Names of all inputs of a class that users put into workflows, hidden ones too; None for any other class."""
    if class_type not in USER_CLASSES:
        return None
    no_cut = cast(NodeContext, None)  # only inner classes ask for it
    declared = node_classes(no_cut)[class_type].INPUT_TYPES()  # type: ignore[attr-defined]  # as each node class has it
    return frozenset(name for kind in declared.values() for name in kind)


def node_classes(
    context: NodeContext,
    *,
    nothing: Sequence[Any] = (),
    cropper: TileCropper | None = None,
    sampling: Any = UsualSamplers,
) -> dict[str, type]:
    """class_type -> class, for ComfyUI's ``NODE_CLASS_MAPPINGS`` and the builtin engine.

    Args:
        context: where sinks put and sources get values; one per engine, so two engines in one process do not meet.
        nothing: the list that a source gives where no item delivered a value. ComfyUI needs ``[ExecutionBlocker(None)]``, which keeps
            the nodes behind it from running; an empty list makes them fail.
        cropper: what the tile nodes cut with; without one they change nothing.
        sampling: where the engine lists its ``SAMPLERS`` and ``SCHEDULERS``, read anew each time.
    """
    cropper = cropper or Uncropped()
    return {
        SEED_CLASS: DistributedSeed,
        COLLECTOR_CLASS: DistributedCollector,
        VALUE_CLASS: DistributedValue,
        MODEL_NAME_CLASS: DistributedModelName,
        IMAGE_DIVIDER_CLASS: ImageBatchDivider,
        AUDIO_DIVIDER_CLASS: AudioBatchDivider,
        EMPTY_IMAGE_CLASS: DistributedEmptyImage,
        SINK_CLASS: bind(DistributedSink, context=context),
        SOURCE_CLASS: bind(DistributedSource, context=context, nothing=nothing),
        UPSCALE_CLASS: bind(UltimateSDUpscaleDistributed, sampling=sampling),
        TILE_REGIONS_CLASS: DistributedTileRegions,
        TILE_INPUTS_CLASS: DistributedTileInputs,
        TILE_PIXELS_CLASS: bind(DistributedTilePixels, cropper=cropper),
        TILE_IMAGE_CLASS: DistributedTileImage,
        TILE_LATENT_CLASS: DistributedTileLatent,
        TILE_CONDITIONING_CLASS: bind(DistributedTileConditioning, cropper=cropper),
        TILE_MODEL_CLASS: bind(DistributedTileModel, cropper=cropper),
    }
