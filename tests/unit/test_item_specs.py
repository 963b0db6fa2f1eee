"""Item specs as the table stores them: what a stage's items share is stored once, and may be added to."""
from __future__ import annotations

from distributed_comfy.messages import ItemSpec, Patch
from distributed_comfy.state.specs import has_template, pack_specs, unpack_spec

SEEDS = [ItemSpec(k, "generate", "p", ("9",), (Patch("3", "seed", 2**63 + k),), str(2**63 + k)) for k in range(3)]
TILES = [ItemSpec(k, "tile", "q", ("9", "10"), (Patch("5", "x", k), Patch("5", "mode", "chess"))) for k in range(3, 6)]


def test_a_spec_comes_back_as_it_was() -> None:
    templates, packed = pack_specs([*SEEDS, *TILES])
    assert len(templates) == 2
    assert [unpack_spec(templates, index, text) for index, text in packed] == [*SEEDS, *TILES]


def test_templates_that_are_known_keep_their_numbers() -> None:
    first, seeds = pack_specs(SEEDS)
    both, tiles = pack_specs([*TILES, *SEEDS], first)
    assert both[: len(first)] == first and len(both) == 2
    assert [unpack_spec(both, index, text) for index, text in [*seeds, *tiles]] == [*SEEDS, *TILES, *SEEDS]
    assert pack_specs(TILES, both) == (both, tiles[:3]), "the same again adds nothing"


def test_who_read_the_templates_too_early_can_tell() -> None:
    first, seeds = pack_specs(SEEDS)
    both, tiles = pack_specs(TILES, first)
    assert has_template(first, seeds[0][1]) and has_template(both, tiles[0][1])
    assert not has_template(first, tiles[0][1])
