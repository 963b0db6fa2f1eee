"""What waits for what: enough that no order of events changes a pixel, and nothing that could be left out."""
from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.tile_reference import Before, all_edges, conflicts, edges, mixing, one_by_one, picture, plans, run_events, without_edge
from tiler.groups import GroupLimits, group_steps
from tiler.plan import TilePlan


@given(plans())
@settings(max_examples=100)
def test_two_events_that_share_pixels_always_happen_in_plan_order(plan: TilePlan) -> None:
    before = Before(len(plan.steps), all_edges(plan))
    assert [pair for pair in conflicts(plan) if not before.is_before(*pair)] == []


@given(plans(most_padding=64, most_steps=100))
@settings(max_examples=100)
def test_no_edge_is_implied_by_the_others(plan: TilePlan) -> None:
    given_edges = all_edges(plan)
    for step in plan.steps:
        for edge in edges(step):
            others = Before(step.index + 1, (each for each in given_edges if each != edge and each[1][1] <= step.index))
            assert not others.is_before(*edge), edge


@given(plans(most_columns=4, most_padding=64, most_steps=40), st.data())
@settings(max_examples=40)
def test_without_any_one_edge_some_allowed_run_gives_another_image(plan: TilePlan, data: st.DataObject) -> None:
    possible = all_edges(plan)
    assume(possible)
    edge = data.draw(st.sampled_from(possible))
    image = picture(plan)
    first, second = edge
    other_order = Before(len(plan.steps), all_edges(without_edge(plan, edge))).run_with(second, before=first)
    assert not np.array_equal(run_events(plan, other_order, mixing, image), run_events(plan, one_by_one(plan), mixing, image))


@given(plans(), st.integers(0, 400_000), st.integers(1, 8))
@settings(max_examples=40)
def test_items_of_several_steps_can_be_run_in_their_order(plan: TilePlan, most_pixels: int, shares: int) -> None:
    """All crops of an item are cut before its tiles are blended; whatever each crop or blend needs has happened by then."""
    items = group_steps(plan, GroupLimits(most_pixels, shares=shares))
    assert sorted(index for item in items for index in item) == list(range(len(plan.steps)))
    before = Before(len(plan.steps), all_edges(plan))
    cut: set[int] = set()
    for item in items:
        needed = {other for index in item for other in range(index) if before.is_before(("blend", other), ("cut", index))}
        assert needed <= cut - set(item), "an item would wait for itself, or for a later one"
        for other in needed:
            assert {each for each in range(other) if before.is_before(("cut", each), ("blend", other))} <= cut
        cut |= set(item)
