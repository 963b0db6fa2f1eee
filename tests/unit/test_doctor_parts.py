"""The doctor's judgement of facts: versions, packages, settings, clocks, disks, differences between workers, foreign packages."""
from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_comfy.errors import ForeignPackage
from distributed_comfy.messages import Capability
from distributed_comfy.orchestrator.doctor import disk, packages, redis_version
from distributed_comfy.orchestrator.doctor.disk import check_folder
from distributed_comfy.orchestrator.doctor.findings import Finding, fail, healthy, ok, warn
from distributed_comfy.orchestrator.doctor.redis_settings import check_blob_settings, check_clock, check_state_settings
from distributed_comfy.orchestrator.doctor.redis_version import FIXED, Package, check_version, read_package
from distributed_comfy.orchestrator.doctor.server_facts import ServerFacts
from distributed_comfy.orchestrator.doctor.server_program import local_programs
from distributed_comfy.orchestrator.doctor.workers import check_cores, check_differences
from distributed_comfy.state.records import WorkerFacts
from tests.command_line import until

STATE = ServerFacts(
    product="Valkey", version="8.1.11", programs=(), run_id="1", role="master", maxmemory=0, maxmemory_policy="noeviction", appends=True,
    append_error=False, open_to_all=False, loopback=False, answer_ms=0.1, clock_ahead_s=0.0,
)  # fmt: skip
BLOB = replace(STATE, run_id="2", maxmemory=2**33, appends=False)


def levels(findings: list[Finding]) -> list[str]:
    assert all(finding.remedy for finding in findings if finding.level != "ok"), "whatever is wrong says what to do"
    return [finding.level for finding in findings]


def version(product: str, number: str, package: Package | None = None, accepted: str = "", private: bool = False) -> Finding:
    return check_version("version", replace(STATE, product=product, version=number), package, accepted=accepted, private=private)


def test_warnings_alone_are_healthy() -> None:
    assert healthy([ok("a", "b"), warn("a", "b", "c")]) and not healthy([ok("a", "b"), fail("a", "b", "c")])


# -- versions -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("product", "number", "level"),
    [
        ("Redis", "6.2.19", "fail"), ("Redis", "6.2.20", "warn"), ("Redis", "6.2.24", "ok"), ("Redis", "7.0.15", "fail"),
        ("Redis", "7.2.10", "fail"), ("Redis", "7.2.11", "warn"), ("Redis", "7.4.5", "fail"), ("Redis", "8.0.3", "fail"),
        ("Redis", "8.0.6", "warn"), ("Redis", "8.2.1", "fail"), ("Redis", "8.2.9", "ok"), ("Redis", "8.10.1", "ok"),
        ("Redis", "9.0.0", "ok"),
        ("Valkey", "7.2.10", "fail"), ("Valkey", "8.0.5", "fail"), ("Valkey", "8.1.3", "fail"), ("Valkey", "8.1.4", "warn"),
        ("Valkey", "8.1.11", "ok"), ("Valkey", "9.0.0", "warn"), ("Valkey", "9.2.0", "ok"),
        ("Dragonfly", "1.2.3", "warn"), ("Redis", "unknown", "warn"),
    ],
)  # fmt: skip
def test_a_version_is_judged_by_the_first_one_of_its_series_with_the_fix(product: str, number: str, level: str) -> None:
    found = version(product, number)
    assert levels([found]) == [level] and f"{product} {number}" in found.found


def test_what_to_upgrade_to_is_of_the_same_series_else_of_the_next_that_is_kept() -> None:
    assert "upgrade to Redis 6.2.24 or later, or " in version("Redis", "6.2.6").remedy
    assert "upgrade to Redis 7.2.16 or later" in version("Redis", "7.0.15").remedy
    assert "upgrade to Redis 8.2.9 or later" in version("Redis", "8.0.4").remedy
    assert "upgrade to Valkey 7.2.14 or later" in version("Valkey", "7.2.4").remedy


def test_what_the_doctor_tells_to_upgrade_to_is_good_enough_for_it() -> None:
    for product, known in FIXED.items():
        for (major, minor), (_, last) in known.items():
            assert last is None or version(product, f"{major}.{minor}.{last}").level == "ok"


def test_an_owner_can_vouch_for_a_version_or_a_package() -> None:
    package = Package("redis-server", "5:7.0.15-1rhel", None)
    assert "DC_REDIS_ACCEPT=7.0.15" in version("Redis", "7.0.15").remedy
    assert "DC_REDIS_ACCEPT=5:7.0.15-1rhel" in version("Redis", "7.0.15", package).remedy
    assert version("Redis", "7.0.15", accepted="7.0.15").level == "ok"
    assert version("Redis", "7.0.15", package, accepted="5:7.0.15-1rhel").level == "ok"
    assert version("Redis", "7.0.15", package, accepted="7.0.14").level == "fail"


def test_a_package_with_the_fix_counts_more_than_the_number() -> None:
    found = version("Redis", "7.0.15", Package("redis-server", "5:7.0.15-1~deb12u10", True))
    assert found.level == "ok" and "package redis-server 5:7.0.15-1~deb12u10" in found.found
    assert version("Redis", "7.0.15", Package("redis-server", "5:7.0.15-1~deb12u5", False)).level == "fail"


def test_a_server_that_nobody_else_can_reach_is_warned_of() -> None:
    assert version("Redis", "6.2.6", private=True).level == "warn"


TOOL = """#!/bin/sh
case "$*" in
  "--search {program}") echo "redis-server: {program}";;
  "--show --showformat \\${{Version}} redis-server") printf '%s' '{version}';;
  *) exit 1;;
esac
"""


@pytest.mark.parametrize(
    ("number", "changelog", "fixed"),
    [
        ("5:7.0.15-1~deb12u5", "  * CVE-2025-32023: fixed", False),
        ("5:7.0.15-1ubuntu0.24.04.2", "  * CVE-2025-46817 / CVE-2025-49844", True),
        ("5:7.0.15-1~deb12u6", None, True),
        ("5:7.0.15-1~deb12u10", None, True),
        ("5:7.0.15-1~deb12u5", None, None),
        ("5:8.0.2-3", None, None),
    ],
)
def test_a_packages_fix_is_read_from_its_changelog_else_from_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, changelog: str | None, fixed: bool | None
) -> None:
    program = tmp_path / "redis-server"
    program.touch()
    tool = tmp_path / "dpkg-query"
    tool.write_text(TOOL.format(program=program, version=number))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    documents = tmp_path / "doc" / "redis-server"
    documents.mkdir(parents=True)
    monkeypatch.setattr(redis_version, "_DOCUMENTS", tmp_path / "doc")
    if changelog is not None:
        (documents / "changelog.Debian.gz").write_bytes(gzip.compress(changelog.encode()))
    assert read_package((program,)) == Package("redis-server", number, fixed)


def test_a_program_of_no_package_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_package(()) is None
    assert read_package((tmp_path / "redis-server",)) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_package((Path(sys.executable),)) is None


def test_a_server_whose_program_cannot_be_seen_is_warned_of_where_the_package_of_its_version_has_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "dpkg-query"
    tool.write_text("#!/bin/sh\n[ $4 = redis-server ] && echo 'installed 5:7.0.15-1~deb12u10'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    monkeypatch.setattr(redis_version, "_DOCUMENTS", tmp_path)
    facts = replace(STATE, product="Redis", version="7.0.15")
    package = redis_version.installed_package(facts)
    assert package == Package("redis-server", "5:7.0.15-1~deb12u10", True, certain=False)
    found = version("Redis", "7.0.15", package)
    assert levels([found]) == ["warn"] and "unless it runs from this host's package redis-server" in found.found
    assert "set DC_REDIS_ACCEPT=5:7.0.15-1~deb12u10" in found.remedy
    assert version("Redis", "7.0.15", package, accepted="5:7.0.15-1~deb12u10").level == "ok"
    assert version("Redis", "7.0.15", replace(package, fixed=None)).level == "fail"
    assert redis_version.installed_package(replace(facts, version="7.0.1")) is None, "not of that package, whatever it is"
    assert redis_version.installed_package(replace(facts, product="Valkey")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows processes as files")
def test_a_programs_names_are_read_from_its_process_whatever_the_server_says(tmp_path: Path) -> None:
    (tmp_path / "check-server").symlink_to("sleep-server")
    shutil.copy(shutil.which("sleep") or "", tmp_path / "sleep-server")
    with subprocess.Popen(["check-server", "60"], executable=tmp_path / "check-server") as process:
        info = {"executable": "/nowhere/check-server", "process_id": process.pid}
        try:
            until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes())  # it is empty for a moment after the start
            assert local_programs(info) == (tmp_path / "check-server", tmp_path / "sleep-server")
            assert local_programs({**info, "executable": "/nowhere/redis-server"}) == (), "the process id is one of a container"
            (tmp_path / "sleep-server").unlink()
            assert local_programs(info) == (), "replaced by an upgrade since it started"
        finally:
            process.kill()
    assert local_programs(info) == local_programs({}) == ()


# -- settings and clock ---------------------------------------------------------------------------------------------------
def test_servers_as_they_should_be_are_fine() -> None:
    assert levels(check_state_settings(STATE)) == levels(check_blob_settings(BLOB, STATE)) == ["ok"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"appends": False}, ["fail"]),
        ({"append_error": True}, ["fail"]),
        ({"role": "slave"}, ["fail"]),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 2**30}, ["fail"]),
        ({"maxmemory_policy": "allkeys-lru"}, ["warn"]),
        ({"open_to_all": True}, ["warn"]),
        ({"appends": False, "open_to_all": True}, ["fail", "warn"]),
    ],
)
def test_a_state_server_that_can_lose_jobs_or_lets_everyone_in_is_told(change: dict[str, object], expected: list[str]) -> None:
    assert levels(check_state_settings(replace(STATE, **change))) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"maxmemory": 0}, ["warn"]),
        ({"appends": True}, ["warn"]),
        ({"maxmemory_policy": "volatile-lru"}, ["warn"]),
        ({"role": "slave"}, ["fail"]),
        ({"run_id": "1"}, ["warn"]),
    ],
)
def test_a_blob_server_is_judged_by_other_rules(change: dict[str, object], expected: list[str]) -> None:
    assert levels(check_blob_settings(replace(BLOB, **change), STATE)) == expected  # type: ignore[arg-type]


def test_who_can_come_in_without_a_password_is_said() -> None:
    assert "program of this host" in check_state_settings(replace(STATE, open_to_all=True, loopback=True))[0].found
    assert "whoever reaches its port" in check_state_settings(replace(STATE, open_to_all=True))[0].found


def test_a_clock_may_be_off_by_two_seconds() -> None:
    assert check_clock("clock", replace(STATE, clock_ahead_s=1.5)).level == "ok"
    assert "4.000 s behind" in check_clock("clock", replace(STATE, clock_ahead_s=-4.0)).found
    assert levels([check_clock("clock", replace(STATE, clock_ahead_s=4.0))]) == ["warn"]


# -- disk -----------------------------------------------------------------------------------------------------------------
Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "level"), [(2**28 - 1, "fail"), (2**30, "warn"), (2**32, "ok")])
def test_free_space_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))
    assert levels([check_folder("cache", tmp_path, "DC_CACHE_DIR")]) == [level]


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_above(tmp_path: Path) -> None:
    found = check_folder("output", tmp_path / "not" / "yet", "--out")
    assert "GiB free in" in found.found and not (tmp_path / "not").exists()


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert levels([check_folder("output", tmp_path / "file", "--out")]) == ["fail"]
    assert levels([check_folder("output", tmp_path / "file" / "below", "--out")]) == ["fail"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    found = disk.check_folder("cache", tmp_path / "cache", "DC_CACHE_DIR")
    tmp_path.chmod(0o700)
    assert found.level == "fail" and "DC_CACHE_DIR" in found.remedy


# -- workers --------------------------------------------------------------------------------------------------------------
def worker(name: str, classes: tuple[str, ...] = ("KSampler",), **facts: str) -> tuple[WorkerFacts, Capability]:
    told = {"engine": "comfyui", "engine_version": "0.3.64", "package_version": "1.0", **facts}
    return WorkerFacts(name, "host", "cuda:0", **told), Capability(told["engine"], told["engine_version"], classes)  # type: ignore[arg-type]


def test_equal_workers_differ_in_nothing_and_one_has_nobody_to_differ_from() -> None:
    assert levels(check_differences([worker("a"), worker("b")])) == ["ok"]
    assert check_differences([worker("a")]) == []


def test_different_versions_are_told_with_who_has_which() -> None:
    found = check_differences([worker("a"), worker("b", engine_version="0.3.70"), worker("c", package_version="0.9")])
    assert levels(found) == ["warn", "warn"]
    assert found[0].found == "distributed-comfy 0.9 on c; 1.0 on a, b" and found[1].found == "comfyui 0.3.64 on a, c; 0.3.70 on b"


def test_missing_node_classes_are_told_once_for_workers_that_lack_the_same() -> None:
    pack = tuple(f"Pack{number}" for number in range(8))
    found = check_differences([worker("a", pack), worker("b", ()), worker("c", ())])
    assert levels(found) == ["warn"]
    assert found[0].found.startswith("b, c: without 8 node classes that others have (Pack0, Pack1, ") and "and 2 more" in found[0].found


def test_workers_of_different_engines_are_not_compared() -> None:
    assert levels(check_differences([worker("a"), worker("b", ("SeededGenerator",), engine="builtin", engine_version="1")])) == ["ok"]


# -- packages -------------------------------------------------------------------------------------------------------------
def test_our_own_packages_are_fine() -> None:
    assert levels(packages.check_packages()) == ["ok"]
    packages.refuse_foreign_packages()


@pytest.mark.parametrize("name", packages.NAMES)
@pytest.mark.parametrize("place", ["elsewhere", "site-packages"])
def test_a_foreign_package_in_front_is_told_and_refused(name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tmp_path / place / name / "__init__.py"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path / place)
    (found,) = packages.check_packages()
    assert found.level == "fail" and str(foreign) in found.found
    assert (f"pip uninstall {name}" in found.remedy) == (place == "site-packages")
    with pytest.raises(ForeignPackage, match=f"the Python package '{name}' comes from "):
        packages.refuse_foreign_packages()


# -- cores --------------------------------------------------------------------------------------------------------------
def on_cores(name: str, cores: str, host: str = "pc1") -> WorkerFacts:
    return WorkerFacts(name, host, "cuda:0", "comfyui", cores=cores)


def test_workers_of_a_host_that_share_cores_are_warned_about_by_name() -> None:
    [finding] = check_cores([on_cores("a", "0-7"), on_cores("b", "7-15"), on_cores("c", "16-23"), on_cores("d", "0-7", "pc2")])
    assert levels([finding]) == ["warn"] and "a, b on pc1" in finding.found and "c" not in finding.found.split(" on ")[0]
    assert "DC_CORES" in finding.remedy


@pytest.mark.parametrize("cores", [("0-7", "8-15"), ("", ""), ("0-7", ""), ("0-7",)])
def test_workers_with_cores_of_their_own_or_that_cannot_tell_are_not(cores: tuple[str, ...]) -> None:
    assert check_cores([on_cores(f"w{number}", text) for number, text in enumerate(cores)]) == []
