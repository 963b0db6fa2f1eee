"""The prompt as a graph."""
from __future__ import annotations

import pytest

from distributed_comfy.errors import PromptHasCycle
from distributed_comfy.workflow.graph import Graph, Link, as_link
from tests.prompts import node, out

DIAMOND = {
    "d": node("D", left=out("b"), right=out("c", 2)),
    "b": node("B", x=out("a")),
    "c": node("C", x=out("a"), again=out("a", 1)),
    "a": node("A", text="hi"),
    "lone": node("A"),
}


def test_a_link_is_a_list_of_text_and_number() -> None:
    assert as_link(["3", 1]) == Link("3", 1)
    assert as_link(("3", 1)) is None
    assert as_link([3, 1]) is None
    assert as_link({"__value__": ["3", 1]}) is None


def test_upstream_and_downstream_include_the_start() -> None:
    graph = Graph(DIAMOND)
    assert graph.upstream(["b"]) == {"a", "b"}
    assert graph.upstream(["d"]) == {"a", "b", "c", "d"}
    assert graph.downstream(["a"]) == {"a", "b", "c", "d"}
    assert graph.downstream(["lone", "b"]) == {"lone", "b", "d"}


def test_consumers_name_input_and_slot() -> None:
    assert Graph(DIAMOND).consumers["a"] == (("b", "x", 0), ("c", "x", 0), ("c", "again", 1))


def test_pruning_keeps_what_the_targets_need() -> None:
    assert Graph(DIAMOND).prune(["c"]) == {"c": DIAMOND["c"], "a": DIAMOND["a"]}


def test_the_order_puts_feeders_first() -> None:
    order = Graph(DIAMOND).order()
    assert sorted(order) == sorted(DIAMOND)
    assert order.index("a") < order.index("b") < order.index("d")
    assert order.index("a") < order.index("c") < order.index("d")


def test_a_cycle_is_named_in_the_direction_of_the_data() -> None:
    ring = {"1": node("A", x=out("3")), "2": node("B", x=out("1")), "3": node("C", x=out("2")), "4": node("D", x=out("3"))}
    assert set(Graph(ring).find_cycle()) == {"1", "2", "3"}
    assert "".join(Graph(ring).find_cycle()) in "123123"
    with pytest.raises(PromptHasCycle, match="break one of these links"):
        Graph(ring).order()


def test_a_node_that_feeds_itself_is_a_cycle() -> None:
    assert Graph({"1": node("A", x=out("1"))}).find_cycle() == ("1",)


def test_a_chain_of_many_thousand_nodes_needs_no_deep_stack() -> None:
    chain = {str(index): node("A", **({"x": out(str(index - 1))} if index else {})) for index in range(20_000)}
    graph = Graph(chain)
    assert graph.order()[-1] == "19999"
    assert len(graph.upstream(["19999"])) == 20_000
    assert graph.find_cycle() == ()
