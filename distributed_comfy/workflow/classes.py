"""Names of the node classes and inputs that mean something to this project, shared by planning, nodes and engines."""
from __future__ import annotations

SEED_CLASS = "DistributedSeed"
"""Its output differs from item to item: base seed + item index."""
COLLECTOR_CLASS = "DistributedCollector"
"""Joins what all items made; the prompt is cut here."""
VALUE_CLASS = "DistributedValue"
"""Its output differs from item to item: a literal of its own for each."""
MODEL_NAME_CLASS = "DistributedModelName"
"""Hands a text on to an input of any type."""
IMAGE_DIVIDER_CLASS = "ImageBatchDivider"
AUDIO_DIVIDER_CLASS = "AudioBatchDivider"
EMPTY_IMAGE_CLASS = "DistributedEmptyImage"
SINK_CLASS = "DistributedSink"
"""Internal: takes a collector's place (or sits on a crossing edge) in the prompt of an item."""
SOURCE_CLASS = "DistributedSource"
"""Internal: takes a collector's place (or that of a crossing edge) in the prompt of the last stage."""
UPSCALE_CLASS = "UltimateSDUpscaleDistributed"
"""Redraws an image tile by tile; in a distributed job each tile, or a few small ones, is an item."""
TILE_REGIONS_CLASS = "DistributedTileRegions"
"""Internal: where the tiles of an item lie, and what else differs from one to the next."""
TILE_INPUTS_CLASS = "DistributedTileInputs"
"""Internal: what the user's nodes give to every tile, one value of each."""
TILE_PIXELS_CLASS = "DistributedTilePixels"
"""Internal: a crop in the size that the VAE gives back."""
TILE_IMAGE_CLASS = "DistributedTileImage"
"""Internal: a decoded tile in the size of its crop."""
TILE_LATENT_CLASS = "DistributedTileLatent"
"""Internal: a latent that knows which frames of the clip it has."""
TILE_CONDITIONING_CLASS = "DistributedTileConditioning"
"""Internal: what a conditioning says about one tile."""
TILE_MODEL_CLASS = "DistributedTileModel"
"""Internal: a model whose patches see one tile."""

OWN_CLASSES = frozenset(
    {
        SEED_CLASS, COLLECTOR_CLASS, VALUE_CLASS, MODEL_NAME_CLASS, IMAGE_DIVIDER_CLASS, AUDIO_DIVIDER_CLASS, EMPTY_IMAGE_CLASS,
        SINK_CLASS, SOURCE_CLASS, UPSCALE_CLASS, TILE_REGIONS_CLASS, TILE_INPUTS_CLASS, TILE_PIXELS_CLASS, TILE_IMAGE_CLASS,
        TILE_LATENT_CLASS, TILE_CONDITIONING_CLASS, TILE_MODEL_CLASS,
    }
)  # fmt: skip
"""Classes that every engine brings along."""

CLAIM_INPUT = "claim_id"
"""Literal input of sinks and sources; the engine writes the claim into it, so that these nodes are never served from a cache."""
KEPT_MARK = "kept:"
"""Begins the text that planning puts in the place of a claim where a source's value is the same in many items and may stay cached."""
SLOTS_INPUT = "slots"
"""Literal input of a source: the wired slots, comma-separated."""
TILES_INPUT = "tiles"
"""Literal input that tells an item of its tiles, in the text of `workflow.region.tasks_text`."""
TILE_INPUT_NAMES = ("model", "positive", "negative", "vae", "seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")
"""Inputs and outputs of `TILE_INPUTS_CLASS`, in this order: inputs of an upscale that nodes may give."""
EDGE_SLOT = "value"
"""Slot name of a sink or source that stands for a crossing edge."""
COLLECTOR_SLOTS = ("images", "audio", "latents", "masks")
"""Slots of a collector in the order of its outputs."""
TENSOR_SLOTS = ("images", "masks")
"""Slots whose values are plain tensors, joined along their first axis."""
SWITCHED_ON = (True, "true", "True")
"""What a switch of a collector may hold where it is on."""
PASS_THROUGH_INPUT = "pass_through"
ITEMS_INPUT = "items"
ON_MISSING_INPUT = "on_missing"
ON_MISSING_CHOICES = ("error", "drop", "repeat")
"""What a collector may make of items that failed for good; the first is the default."""
LOAD_BALANCE_INPUT = "load_balance"
SAVE_PREFIX_INPUT = "save_prefix"

LEGACY_INPUTS = frozenset(
    {
        "multi_job_id", "is_worker", "master_url", "enabled_worker_ids", "worker_batch_size", "worker_id", "delegate_only", "tile_indices",
    }
)
"""Inputs that ComfyUI-Distributed writes into prompts while it runs; without meaning here."""
LEGACY_CLASSES = frozenset({SEED_CLASS, COLLECTOR_CLASS, VALUE_CLASS, UPSCALE_CLASS})
"""Classes that carry `LEGACY_INPUTS`."""


def edge_id(node_id: str, slot: int) -> str:
    """Id of the sink and the source of an edge that crosses the cut."""
    return f"{node_id}~{slot}"
