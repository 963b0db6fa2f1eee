"""Which CPUs and how many threads each worker of a host gets."""
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_comfy.agent.placement import GPU_THREADS, Placement, Topology, Wish, plan_placement
from distributed_comfy.agent.topology import cpu_limit, read_topology
from distributed_comfy.errors import WorkersFileWrong
from distributed_comfy.state.records import HostDevice


def cores(first: int, last: int, siblings: int = 0) -> tuple[tuple[int, ...], ...]:
    """Cores of one CPU each, or of two of which the second has a number that is higher by ``siblings``."""
    return tuple((cpu, cpu + siblings) if siblings else (cpu,) for cpu in range(first, last + 1))


def gpus(count: int) -> list[Wish]:
    return [Wish(f"pc1-cuda{number}", (f"cuda:{number}",)) for number in range(count)]


def cpus(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


def test_one_gpu_gets_all_cores_near_it_and_few_threads() -> None:
    one_side = Topology(cores(0, 15), {"cuda:0": frozenset(range(8))})
    assert plan_placement(gpus(1), one_side) == {"pc1-cuda0": Placement(cpus(0, 7), GPU_THREADS)}
    unknown = Topology(cores(0, 15))
    assert plan_placement(gpus(1), unknown) == {"pc1-cuda0": Placement(cpus(0, 15), GPU_THREADS)}


def test_four_gpus_on_two_sides_get_equal_parts_of_their_own_side() -> None:
    left, right = frozenset(range(16)), frozenset(range(16, 32))
    near = {"cuda:0": left, "cuda:1": left, "cuda:2": right, "cuda:3": right}
    found = plan_placement(gpus(4), Topology(cores(0, 31), near))
    assert [found[f"pc1-cuda{number}"].cores for number in range(4)] == [cpus(0, 7), cpus(8, 15), cpus(16, 23), cpus(24, 31)]


def test_a_worker_that_may_go_anywhere_takes_what_those_with_a_side_leave() -> None:
    near = {"cuda:0": frozenset(range(4))}
    found = plan_placement([*gpus(1), Wish("pc1-cpu", ("cpu",))], Topology(cores(0, 7), near))
    assert (found["pc1-cuda0"].cores, found["pc1-cpu"].cores) == (cpus(0, 3), cpus(4, 7))
    assert found["pc1-cpu"].threads == 4, "a worker on the CPU computes with all its cores"


def test_both_threads_of_a_core_go_to_one_worker() -> None:
    found = plan_placement(gpus(2), Topology(cores(0, 3, siblings=4)))
    assert [found[name].cores for name in ("pc1-cuda0", "pc1-cuda1")] == [(0, 1, 4, 5), (2, 3, 6, 7)]
    assert {place.threads for place in found.values()} == {2}, "two cores, whatever their hardware threads"


def test_more_workers_than_cores_share_them() -> None:
    found = plan_placement([Wish(f"w{number}", ("cpu",)) for number in range(5)], Topology(cores(0, 1)))
    assert [found[f"w{number}"].cores for number in range(5)] == [(0,), (1,), (0,), (1,), (0,)]
    assert {place.threads for place in found.values()} == {1}


def test_only_what_a_container_may_use_is_dealt_out() -> None:
    found = plan_placement(gpus(2), Topology(((5,), (6,), (9,)), {"cuda:0": frozenset({5, 6}), "cuda:1": frozenset({5, 6})}))
    assert [place.cores for place in found.values()] == [(5,), (6,)]
    assert plan_placement([Wish("w", ("cpu",))], Topology(cores(0, 15), cpu_limit=2.5))["w"].threads == 2


def test_chosen_cores_and_threads_are_kept_and_not_given_to_others() -> None:
    mine = Wish("mine", ("cuda:0",), cores=(0, 1), threads=16)
    found = plan_placement([mine, Wish("other", ("cuda:1",))], Topology(cores(0, 3)))
    assert found == {"mine": Placement((0, 1), 16), "other": Placement((2, 3), 2)}


def test_chosen_cores_that_are_not_there_are_refused() -> None:
    with pytest.raises(WorkersFileWrong, match=r"workers\.mine\.cores has CPUs 4-5, which the agent may not use; it may use 0-3"):
        plan_placement([Wish("mine", ("cuda:0",), cores=(3, 4, 5))], Topology(cores(0, 3)))


def test_where_the_system_tells_nothing_nothing_is_bound() -> None:
    found = plan_placement([*gpus(1), Wish("pc1-cpu", ("cpu",), cores=(3,))], Topology(()))
    assert found == {"pc1-cuda0": Placement((), GPU_THREADS), "pc1-cpu": Placement((), 0)}


def test_a_worker_of_two_gpus_may_use_both_sides() -> None:
    near = {"cuda:0": frozenset(range(4)), "cuda:1": frozenset(range(4, 8))}
    found = plan_placement([Wish("both", ("cuda:0", "cuda:1"))], Topology(cores(0, 7), near))
    assert found["both"].cores == cpus(0, 7)


@given(st.integers(1, 12), st.integers(1, 24), st.integers(1, 2), st.randoms())
def test_every_worker_has_a_core_and_none_is_shared_while_there_are_enough(workers: int, count: int, siblings: int, random: object) -> None:
    topology = Topology(cores(0, count - 1, siblings=100 if siblings == 2 else 0))
    found = plan_placement(gpus(workers), topology)
    sizes = [len(place.cores) // siblings for place in found.values()]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    given_away = [cpu for place in found.values() for cpu in place.cores]
    if workers <= count:
        assert sorted(given_away) == sorted(cpu for core in topology.cores for cpu in core)


# -- what the kernel says ------------------------------------------------------------------------------------------------
def test_the_kernels_files_become_cores_and_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu, siblings in ((0, "0,4"), (1, "1,5"), (2, "2,6"), (4, "0,4"), (5, "1,5")):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    device = tmp_path / "bus/pci/devices/0000:81:00.0"
    device.mkdir(parents=True)
    (device / "local_cpulist").write_text("0-1,4-5\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 4, 7}, raising=False)
    gpu = HostDevice("cuda:0", bus_id="0000:81:00.0")
    found = read_topology([gpu, HostDevice("cuda:1", bus_id="0000:ff:00.0"), HostDevice("cpu")], tmp_path)
    assert found.cores == ((0, 4), (1,), (2,), (7,)), "half a core where the other half is forbidden; one that says nothing is whole"
    assert found.near == {"cuda:0": frozenset({0, 1, 4})}


@pytest.mark.parametrize(("text", "limit"), [("max 100000\n", 0.0), ("250000 100000\n", 2.5), ("nonsense", 0.0)])
def test_a_containers_limit_is_read(tmp_path: Path, text: str, limit: float) -> None:
    (tmp_path / "fs/cgroup").mkdir(parents=True)
    (tmp_path / "fs/cgroup/cpu.max").write_text(text)
    assert cpu_limit(tmp_path) == limit


def test_this_machine_can_be_read() -> None:
    found = read_topology([])
    assert found.cores and plan_placement(gpus(1), found)["pc1-cuda0"].cores
