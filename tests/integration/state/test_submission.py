"""A submission calls workers of known capabilities in its one round trip; the look at all capabilities comes after."""
from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.state_cluster import Cluster


class RedisDied(Exception):
    """Between the submission and the look at all capabilities."""


def refuse(signatures: Iterable[str]) -> None:
    raise RedisDied


def test_a_submitter_that_knows_the_capabilities_calls_before_it_looks_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.join("v", "w")
    cluster.jobs._matching.capabilities()
    with monkeypatch.context() as patch:
        patch.setattr(cluster.jobs._matching, "match_signatures", refuse)
        with pytest.raises(RedisDied):
            cluster.submit("a", items=2)
    assert sorted(cluster.tickets) == ["v", "w"]
    assert len(cluster.answer_tickets()) == 2


def test_a_capability_that_the_submitter_has_not_read_is_found_by_the_look(cluster: Cluster) -> None:
    cluster.join("v", has=("Other",))
    cluster.jobs._matching.capabilities()
    cluster.join("w")
    cluster.submit("a")
    assert cluster.answer_tickets() == ["a"]


def test_a_known_capability_that_does_not_match_or_has_gone_calls_nobody(cluster: Cluster) -> None:
    cluster.join("v", has=("Other",))
    cluster.join("w")
    cluster.jobs._matching.capabilities()
    cluster.expire("w")
    cluster.reap()
    cluster.submit("a")
    assert cluster.tickets == []


def test_a_server_that_forgot_its_scripts_gets_them_again(cluster: Cluster) -> None:
    cluster.join("v")
    cluster.jobs._matching.capabilities()
    cluster.client.script_flush()
    cluster.submit("a")
    assert cluster.answer_tickets() == ["a"]


def test_the_live_workers_are_those_whose_lease_runs(cluster: Cluster) -> None:
    matching = cluster.jobs._matching
    assert matching.live() == {}
    cluster.join("v")
    cluster.join("w", has=("Sampler", "Saver"))
    assert {name: found.node_classes for name, found in matching.live().items()} == {"v": ("Sampler",), "w": ("Sampler", "Saver")}
    cluster.expire("v")
    cluster.join("w", has=("Saver",))
    assert {name: found.node_classes for name, found in matching.live().items()} == {"w": ("Saver",)}
