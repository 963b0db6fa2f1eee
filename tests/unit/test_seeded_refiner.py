"""The seeded refiner: exact, sharper than what it got, and never beyond it."""
from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import interpolate

from distributed_comfy.engine.builtin.refiner import Refiner, Strength, seeded_noise

STRENGTH = Strength(denoise=0.4, edges=0.8, strokes=0.6)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads gain nothing on small pictures, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def enlarged(side: int = 96) -> torch.Tensor:
    """A picture that was enlarged 8 times."""
    small = torch.rand((1, 3, side // 8, side // 8), generator=torch.Generator().manual_seed(4))
    return interpolate(small, size=(side, side), mode="bilinear")[0]


def refined(image: torch.Tensor, seed: int = 7, strength: Strength = STRENGTH, steps: int = 12) -> torch.Tensor:
    refiner = Refiner(image, seeded_noise(seed, [0], (image.shape[1], image.shape[2]))[0], strength)
    assert list(refiner.steps(steps)) == list(range(1, steps + 1))
    return refiner.render()


def steepest(image: torch.Tensor) -> float:
    """Mean of the steepest hundredth of all slopes."""
    slopes = (image[:, :, 1:] - image[:, :, :-1]).abs().flatten()
    return float(slopes.topk(len(slopes) // 100).values.mean())


@pytest.mark.parametrize("size", [(96, 96), (61, 45)])
def test_the_bits_do_not_depend_on_the_number_of_threads(size: tuple[int, int]) -> None:
    image = torch.rand((3, *size), generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(refined(image, 2**64 - 1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_edges_become_much_steeper() -> None:
    image = enlarged()
    assert steepest(refined(image, strength=Strength(0.4, 0.8, 0.0))) > 3 * steepest(image)


def test_no_pixel_leaves_the_range_of_the_image() -> None:
    image = torch.rand((3, 40, 50), generator=torch.Generator().manual_seed(2))
    for denoise in (0.1, 1.0):
        result = refined(image, strength=Strength(denoise, 1.0, 1.0))
        assert result.min() >= 0 and result.max() <= 1 and torch.isfinite(result).all()


def test_a_seed_paints_strokes_of_its_own_and_without_strokes_none() -> None:
    image = enlarged()
    assert (refined(image, 1) - refined(image, 2)).abs().max() > 0.02
    bare = Strength(0.4, 0.8, 0.0)
    assert torch.equal(refined(image, 1, bare), refined(image, 2, bare))


def test_more_denoise_changes_more() -> None:
    image = enlarged()
    changes = [float((refined(image, strength=Strength(denoise, 0.8, 0.6)) - image).abs().mean()) for denoise in (0.1, 0.4, 1.0)]
    assert changes == sorted(changes) and changes[0] > 0.002


@pytest.mark.parametrize("steps", [1, 3, 30])
def test_the_number_of_steps_hardly_changes_what_comes_out(steps: int) -> None:
    image = enlarged()
    assert (refined(image, steps=steps) - refined(image)).abs().mean() < 0.02


def test_a_picture_of_one_pixel_is_refined_too() -> None:
    assert refined(torch.full((3, 1, 1), 0.5)).shape == (3, 1, 1)
