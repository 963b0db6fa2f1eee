"""The pictures of the seeded generator: exact, different, and made step by step."""
from __future__ import annotations

import itertools

import pytest
import torch

from distributed_comfy.engine.builtin.pictures import STYLES, Picture, Subject


def drawn(subject: Subject, steps: int = 6) -> torch.Tensor:
    picture = Picture(subject, device="cpu")
    for _ in picture.steps(steps):
        pass
    return picture.render()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [(96, 96), (61, 45)])
def test_the_bits_do_not_depend_on_the_number_of_threads(style: str, size: tuple[int, int]) -> None:
    before = torch.get_num_threads()
    try:
        pictures = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            pictures.append(drawn(Subject(2**64 - 1, 0, *size, style)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(pictures[0], picture) for picture in pictures[1:])


def test_a_picture_is_an_image_with_light_and_shade() -> None:
    image = drawn(Subject(7, 0, 64, 48))
    assert (tuple(image.shape), image.dtype) == ((48, 64, 3), torch.float32)
    assert 0 <= image.min() < 0.3
    assert 0.6 < image.max() <= 1
    assert image.std() > 0.1


def test_neighbouring_seeds_and_pictures_of_one_batch_are_clearly_different() -> None:
    subjects = [Subject(seed, 0, 64, 64) for seed in range(8)] + [Subject(0, position, 64, 64) for position in (1, 2)]
    images = [drawn(subject) for subject in subjects]
    for one, other in itertools.combinations(images, 2):
        assert (one - other).abs().mean() > 0.08


def test_eight_neighbours_have_eight_palettes_and_all_styles() -> None:
    pictures = [Picture(Subject(seed, 0, 16, 16), device="cpu") for seed in range(40, 48)]
    assert len({picture._palette for picture in pictures}) == 8
    assert {picture.style for picture in pictures} == set(STYLES)


def test_each_step_changes_the_picture_and_a_preview_shows_it() -> None:
    picture = Picture(Subject(3, 0, 400, 230), device="cpu")
    seen = [picture.preview() for _ in picture.steps(4)]
    assert all((one - other).abs().max() > 0.05 for one, other in itertools.pairwise(seen))
    assert min(seen[0].shape[:2]) <= 2 * 192
    assert seen[0].shape[1] > seen[0].shape[0]
