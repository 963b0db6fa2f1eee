"""The names of the blobs that feed a last stage, known to master and worker before any of them exists.

The master keeps the feed with the job when it unblocks the last stage, at a time when nobody has claimed it: each blob's name
then holds a place for the claim.  Whoever claims the stage fills in its own claim id, and the master uploads under the same names; a
second claim gets blobs of its own.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from distributed_comfy.messages import MappingValue, TensorRef, Value

Feed = dict[str, dict[str, tuple[Value, ...]]]
"""Source node id -> slot (``images``, ``audio``, ``latents``, ``masks``, ``value``) -> values in order; as `RunRequest.feed`.

Written to JSON by `messages.dump(feed)`, read by `messages.load(Feed, text)`."""

CLAIM_PLACE = "{claim}"
"""Stands for the claim id in the blob ids of an unbound feed."""


def feed_blob_name(job_id: str, position: int) -> str:
    """Name, with the place for the claim, of the blob at this position of the feed."""
    return f"{job_id}:feed:{CLAIM_PLACE}:{position}"


def bind_feed(feed: Feed, claim_id: str) -> Feed:
    """The feed of one claim: the same values with the claim's id in every blob id."""
    return {
        node: {slot: tuple(_bound(value, claim_id) for value in values) for slot, values in slots.items()}
        for node, slots in feed.items()
    }


def feed_lanes(feed: Feed) -> list[list[tuple[TensorRef, ...]]]:
    """How a feed is uploaded: for each slot its values in order, each as its tensors.

    Slots may be read in any order and also at the same time; within a slot a reader takes the values in order, waits for all tensors of
    one, and unlinks them when it has read them, which makes room for the next.
    """
    return [[tuple(tensors_of(value)) for value in values] for slots in feed.values() for values in slots.values()]


def tensors_of(value: Value) -> Iterator[TensorRef]:
    """Every tensor inside a value, in order."""
    if isinstance(value, TensorRef):
        yield value
    elif isinstance(value, MappingValue):
        for entry in value.entries.values():
            yield from tensors_of(entry)


def _bound(value: Value, claim_id: str) -> Value:
    if isinstance(value, TensorRef):
        return replace(value, blob=value.blob.replace(CLAIM_PLACE, claim_id))
    if isinstance(value, MappingValue):
        return replace(value, entries={name: _bound(entry, claim_id) for name, entry in value.entries.items()})
    return value
