"""What scripts of ComfyUI-Distributed's users call a worker: the id that it had there, or its name here."""
from __future__ import annotations

from typing import Any

import pytest

from distributed_comfy.comfyui.compat_config import as_old_configuration
from distributed_comfy.comfyui.old_ids import id_of, name_of, unknown_id
from distributed_comfy.comfyui.options import Options
from distributed_comfy.state.records import HostRecord, HostWorker


def record(**old_ids: str) -> HostRecord:
    """A host with these workers; an empty id: it never had one."""
    workers = tuple(HostWorker(name, "stopped", "cpu") for name in old_ids)
    configured: dict[str, Any] = {name: {"old_id": old_id} for name, old_id in old_ids.items()}
    return HostRecord("pc1", "me", 1, "x", workers=workers, configuration={"workers": configured})


@pytest.mark.parametrize(
    ("given", "name"), [("1", "first"), ("2", "second"), ("first", "first"), ("PC1 CPU", "pc1-cpu"), ("3", "3"), ("W_x", "third")]
)
def test_a_worker_is_found_by_its_id_and_by_its_name(given: str, name: str) -> None:
    assert name_of(record(first="1", second="2", third="W_x"), given) == name


def test_an_id_comes_before_a_name_that_is_like_it() -> None:
    assert name_of(record(**{"1": "2", "2": "1"}), "1") == "2"


def test_the_old_configuration_tells_the_old_ids() -> None:
    host = record(first="1", other="")
    assert [id_of(host, name) for name in ("first", "other", "elsewhere")] == ["1", "other", "elsewhere"]
    shown = as_old_configuration(host, [], Options(), {})["workers"]
    assert [(worker["id"], worker["name"]) for worker in shown] == [("1", "first"), ("other", "other")]


def test_who_calls_an_unknown_one_is_told_those_that_there_are() -> None:
    assert "no worker '7' (this host has 1 = first, other);" in str(unknown_id(record(first="1", other=""), "7"))
    assert "(this host has none)" in str(unknown_id(None, "7"))
