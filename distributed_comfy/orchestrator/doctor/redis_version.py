"""Whether a server has the fix of the flaw in its Lua interpreter: by its version, its package, or its owner's word.

CVE-2025-49844 (October 2025) lets whoever may run a script take over the server; our scripts need the right to run scripts, so every
worker's password gives it.
"""
from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distributed_comfy.orchestrator.doctor.findings import Finding, Level, ok, warn
from distributed_comfy.orchestrator.doctor.server_facts import ServerFacts

LUA_FLAW = "CVE-2025-49844"

Series = dict[tuple[int, int], tuple[int, "int | None"]]

FIXED: dict[str, Series] = {
    "Redis": {
        (6, 2): (20, 24), (7, 2): (11, 16), (7, 4): (6, 11), (8, 0): (4, None),
        (8, 2): (2, 9), (8, 4): (0, 6), (8, 6): (0, 6), (8, 8): (0, 2), (8, 10): (0, 1),
    },
    "Valkey": {(7, 2): (11, 14), (8, 0): (6, 10), (8, 1): (4, 9), (9, 0): (0, 5), (9, 1): (0, 1)},
}  # fmt: skip
"""Product -> series -> first release without the Lua flaw, and the last security release known here (July and August 2026).

None: the series gets none any more.  A series that is not here has no release without the flaw, unless it is newer than all of them."""

_DEBIAN_FIXED = re.compile(r"7\.0\.15-1~deb12u([6-9]|\d\d+)")
"""For systems without changelogs, as slim container images are."""
_DOCUMENTS = Path("/usr/share/doc")
_TOOL_TIMEOUT_S = 10.0
_CHANGELOG_BYTES = 2**20


@dataclass(frozen=True)
class Package:
    """The distribution's package of a server program."""

    name: str
    version: str
    fixed: bool | None
    """Whether it has the fix; None where that cannot be read."""
    certain: bool = True
    """False: installed here, but whether the server runs from it could not be seen."""


def check_version(check: str, facts: ServerFacts, package: Package | None, *, accepted: str, private: bool) -> Finding:
    """Judge a server's version.

    Args:
        check: name of the finding.
        facts: of the server.
        package: that its program came in, where that could be read; else one of this host that it may have come in.
        accepted: a version that the owner vouches for (DC_REDIS_ACCEPT).
        private: nobody but this user's own processes can reach the server.
    """
    product, version = facts.product, facts.version
    shown = f"{product} {version}" + (f", package {package.name} {package.version}" if package and package.certain else "")
    if accepted and accepted in (version, package.version if package else ""):
        return ok(check, f"{shown}, accepted by DC_REDIS_ACCEPT")
    if package and package.fixed and package.certain:
        return ok(check, f"{shown}, which has the fix of {LUA_FLAW}")
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if product not in FIXED or not numbers:
        return warn(check, f"{shown}, of which it is not known whether it has {LUA_FLAW}", _accept(version, package))
    level, found = _by_series(shown, FIXED[product], (int(numbers[1]), int(numbers[2])), int(numbers[3]))
    if level == "ok":
        return ok(check, shown)
    remedy = f"upgrade to {product} {_best(FIXED[product], int(numbers[1]), int(numbers[2]))} or later, or {_accept(version, package)}"
    if level == "fail" and package and package.fixed:
        return _unless(check, shown, package)
    if level == "fail" and private:
        return warn(check, f"{found}; only you can reach this one", remedy)
    return Finding(check, level, found, remedy)


def _unless(check: str, shown: str, package: Package) -> Finding:
    """A server of this host whose program could not be seen, where a package with its version and the fix is installed."""
    found = f"{shown} has the flaw {LUA_FLAW}, unless it runs from this host's package {package.name} {package.version}, which has the fix"
    remedy = f"if it does, and was started after that was installed, set DC_REDIS_ACCEPT={package.version}; else upgrade it"
    return warn(check, found, remedy)


def _by_series(shown: str, known: Series, series: tuple[int, int], patch: int) -> tuple[Level, str]:
    first, last = known.get(series, (None, None))
    if series > max(known):
        return "ok", shown
    if first is None or patch < first:
        return "fail", f"{shown} has the flaw {LUA_FLAW}: whoever may run scripts can take it over"
    if last is None:
        return "warn", f"{shown} is of a series that gets no security fixes any more"
    return ("warn", f"{shown} lacks later security fixes") if patch < last else ("ok", shown)


def _best(known: Series, *series: int) -> str:
    """The release to upgrade to: of the same series, else of the next one."""
    kept = {number: last for number, (_, last) in known.items() if last is not None}
    best = min((number for number in kept if number >= series), default=max(kept))
    return f"{best[0]}.{best[1]}.{kept[best]}"


def _accept(version: str, package: Package | None) -> str:
    said = package.version if package else version
    return f"where your supplier has fixed this one, set DC_REDIS_ACCEPT={said}"


def read_package(programs: Sequence[Path]) -> Package | None:
    """The Debian or Ubuntu package that a program came in; None for any other.

    Args:
        programs: names of its file, likeliest first.
    """
    for path in programs:
        owner = _ask("dpkg-query", "--search", str(path)).partition(":")[0]
        if owner and "," not in owner and "\n" not in owner:
            version = _ask("dpkg-query", "--show", "--showformat", "${Version}", owner)
            return Package(owner, version, _is_fixed(owner, version)) if version else None
    return None


def installed_package(facts: ServerFacts) -> Package | None:
    """This host's package of such a server, if it has the version that the server tells."""
    name = f"{facts.product.lower()}-server"
    status, _, version = _ask("dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Version}", name).partition(" ")
    if status != "installed" or not re.fullmatch(rf"(\d+:)?{re.escape(facts.version)}([^\d.].*)?", version):
        return None
    return Package(name, version, _is_fixed(name, version), certain=False)


def _is_fixed(package: str, version: str) -> bool | None:
    changelog = _DOCUMENTS / package / "changelog.Debian.gz"
    try:
        with gzip.open(changelog, "rt", encoding="utf-8", errors="replace") as text:
            return LUA_FLAW in text.read(_CHANGELOG_BYTES)
    except (OSError, EOFError):
        return True if _DEBIAN_FIXED.fullmatch(version.partition(":")[2]) else None


def _ask(*command: str) -> str:
    """What a tool of the system prints; empty where it is not there or knows nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
