"""Latents and masks of several items as one, in the engine."""
from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from distributed_comfy.engine.context import GraphContext  # noqa: E402
from distributed_comfy.engine.joining import joined_latents  # noqa: E402
from distributed_comfy.errors import BatchDiffers, FrameMalformed  # noqa: E402
from distributed_comfy.messages import RunRequest  # noqa: E402
from distributed_comfy.transport.memory_blobs import MemoryBlobStore  # noqa: E402
from distributed_comfy.transport.values import store_value  # noqa: E402


def latent(number: float, size: int = 1, **entries: Any) -> dict[str, Any]:
    return {"samples": torch.full((size, 4, 2, 3), float(number)), **entries}


def supplied(slot: str, *values: Any) -> Any:
    """What a source gives for a slot that was fed with these."""
    blobs = MemoryBlobStore()
    fed = tuple(store_value(blobs, f"v{n}", value, job_id="j", limit_bytes=2**30) for n, value in enumerate(values))
    context = GraphContext(blobs, feed_timeout_s=1)
    context.begin(RunRequest("c", "j", 0, "last", {}, (), {}, feed={"5": {slot: fed}}), check=lambda: None)
    (joined,) = context.supply("5", slot)
    return joined


def test_latents_are_joined_along_the_batch_in_order() -> None:
    joined = supplied("latents", latent(1, 2), latent(2))
    assert joined["samples"][:, 0, 0, 0].tolist() == [1, 1, 2]
    assert set(joined) == {"samples"}


def test_latents_of_videos_are_joined_along_the_batch_too() -> None:
    parts = [{"samples": torch.rand((1, 16, 5, 2, 3))} for _ in range(2)]
    assert torch.equal(joined_latents(parts)["samples"], torch.cat([part["samples"] for part in parts]))


def test_other_entries_are_those_of_the_first() -> None:
    assert joined_latents([latent(1, kind="a"), latent(2, kind="b")])["kind"] == "a"


def test_a_batch_index_is_completed_as_comfyui_reads_its_absence() -> None:
    joined = joined_latents([latent(1, 2), latent(2, 2, batch_index=[5, 6]), latent(3)])
    assert joined["batch_index"] == [0, 1, 5, 6, 0]


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (1, 1, 8, 8), (3, 1, 8, 8)])
def test_a_noise_mask_is_spread_over_its_batch_and_completed_with_ones(shape: tuple[int, ...]) -> None:
    joined = joined_latents([latent(1, 3, noise_mask=torch.full(shape, 0.25)), latent(2, 2)])
    assert joined["noise_mask"].shape == (5, 1, 8, 8)
    assert joined["noise_mask"][:, 0, 0, 0].tolist() == [0.25] * 3 + [1.0] * 2


def test_an_empty_batch_adds_nothing_whatever_its_size() -> None:
    empty = {"samples": torch.zeros((0, 4, 8, 8))}
    assert joined_latents([empty, latent(2)])["samples"].shape == (1, 4, 2, 3)
    assert joined_latents([empty])["samples"].shape == (0, 4, 8, 8)


def test_latents_of_different_sizes_are_refused() -> None:
    with pytest.raises(BatchDiffers, match=r"item 1 has latents of \[4, 8, 8\], item 0 of \[4, 2, 3\]"):
        joined_latents([latent(1), {"samples": torch.zeros((1, 4, 8, 8))}])
    with pytest.raises(BatchDiffers, match="noise masks"):
        joined_latents([latent(1, noise_mask=torch.ones((8, 8))), latent(1, noise_mask=torch.ones((4, 4)))])


def test_what_is_no_latent_is_refused() -> None:
    with pytest.raises(FrameMalformed, match="no samples"):
        joined_latents([{"waveform": torch.zeros((1, 2, 3))}])


def test_masks_are_joined_along_the_batch_also_where_one_has_no_batch() -> None:
    joined = supplied("masks", torch.zeros((2, 4, 5)), torch.ones((4, 5)))
    assert joined.shape == (3, 4, 5) and joined[:, 0, 0].tolist() == [0, 0, 1]


def test_masks_of_different_sizes_are_refused() -> None:
    with pytest.raises(BatchDiffers, match=r"item 1 has masks of \[4, 4\]"):
        supplied("masks", torch.zeros((1, 4, 5)), torch.ones((1, 4, 4)))
