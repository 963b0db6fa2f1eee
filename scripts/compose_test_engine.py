"""What runs the containers of `make compose-test`: Docker where its daemon answers, else podman with podman-compose.

Podman gets a store, networks and settings of its own under ``build/compose-test``, so that nothing of it meets the images that the user
has; podman-compose gets an environment of its own there.
"""
from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compose_test_bases import bases, provide

ROOT = Path(__file__).resolve().parent.parent
PODMAN_COMPOSE = "podman-compose==1.6.0"
PACKAGES = ("podman", "netavark", "aardvark-dns", "runc", "iptables", "catatonit", "debootstrap")
_PULL_TIMEOUT_S = 120.0

Runner = Callable[[Sequence[str]], None]


class EngineMissing(Exception):
    """Nothing here runs containers; the text says what to install."""


@dataclass(frozen=True)
class ContainerEngine:
    """How to call it."""

    name: str
    """``docker`` or ``podman``."""
    compose: tuple[str, ...]
    """What stands in front of a compose command."""
    container: tuple[str, ...]
    """What stands in front of ``ps``, ``kill``, ``inspect``..."""
    build_options: tuple[str, ...] = ()
    """Options of compose, only where it builds."""


def find_engine(work: Path, run: Runner) -> ContainerEngine:
    """Docker if it works here, else podman, which is installed where that can be done by apt-get.

    Raises:
        EngineMissing: neither is there, nor can be.
    """
    if _works("docker", "info") and _works("docker", "compose", "version"):
        return ContainerEngine("docker", ("docker", "compose"), ("docker",))
    missing = [name for name in ("podman", "debootstrap") if shutil.which(name) is None]
    if missing:
        _install(missing, run)
    return _podman(work, run)


def provide_bases(engine: ContainerEngine, work: Path, run: Runner) -> list[str]:
    """See to it that the base images are there, pulled or made here; the names of those that are stand-ins."""
    if engine.name == "docker":
        return []  # it pulls what it needs while it builds
    stand_ins = []
    for base in bases():
        if _output(engine, "image", "exists", base.name) is None:
            try:
                pulled = _output(engine, "pull", "--quiet", base.name, timeout_s=_PULL_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                pulled = None
            if pulled is None:
                sys.stderr.write(f"compose-test: no registry has {base.name} for this machine: making one of Debian {base.suite}\n")
                provide(base, work, run, engine.container)
        labels = json.loads(_output(engine, "image", "inspect", "--format", "{{json .Labels}}", base.name) or "null") or {}
        stand_ins += [f"{base.name} ({labels[label]})" for label in labels if label.endswith("stand-in")]
    return stand_ins


def forget_old_layers(engine: ContainerEngine) -> None:
    """Remove layers that no build of the last day used; in podman's store of this test only."""
    if engine.name == "podman":
        _output(engine, "image", "prune", "--force", "--filter", "until=24h", timeout_s=120.0)


def _podman(work: Path, run: Runner) -> ContainerEngine:
    environment = {
        "CONTAINERS_CONF": str(_write(work / "containers.conf", _containers_conf(work))),
        "CONTAINERS_STORAGE_CONF": str(_write(work / "storage.conf", _storage_conf(work))),
        "BUILDAH_FORMAT": "docker",  # the other format has no HEALTHCHECK
    }
    if not Path("/run/systemd/system").is_dir():
        environment["DISABLE_HC_SYSTEMD"] = "true"  # no timers here: the test runs the health checks itself
    compose = work / "podman-compose/bin/podman-compose"
    if not compose.exists():
        run([sys.executable, "-m", "venv", str(work / "podman-compose")])
        run([str(compose.parent / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", PODMAN_COMPOSE])
    mounts = [part for path in pip_mounts(work) for part in ("--volume", path)]
    build_options = ("--podman-build-args", " ".join(mounts)) if mounts else ()
    variables = ("env", *(f"{name}={value}" for name, value in environment.items()))
    return ContainerEngine("podman", (*variables, str(compose)), (*variables, "podman"), build_options)


def pip_mounts(work: Path) -> list[str]:
    """Volumes that give pip inside a build the package index of this machine: its settings, and the local folders and files they name.

    Nothing of it enters an image: it is mounted for the time of the build.
    """
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    settings = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):  # variables win over files
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip().strip("'\"")
    if not settings:
        return []
    config = _write(work / "pip.conf", "[global]\n" + "".join(f"{name} = {value}\n" for name, value in sorted(settings.items())))
    named = [(name, Path(word.removeprefix("file://"))) for name, value in settings.items() for word in value.split()]
    # The pages of an index on disk link to files beside it.
    paths = {path.parent if name.endswith("index-url") else path for name, path in named if path.is_absolute() and path.exists()}
    return [f"{config}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in sorted(paths))]


def _containers_conf(work: Path) -> str:
    """Settings that also work in a container or virtual machine without systemd and with limits that even root cannot raise."""
    engine, containers = [], []
    if not Path("/run/systemd/system").is_dir():
        engine.append('cgroup_manager = "cgroupfs"')
    if shutil.which("crun") is None and shutil.which("runc"):
        engine.append('runtime = "runc"')
    limits = ", ".join(f'"{limit}"' for limit in _limits())
    containers.append(f"default_ulimits = [{limits}]")
    network = [f'network_config_dir = "{work / "networks"}"']
    parts = {"engine": engine, "containers": containers, "network": network}
    return "".join(f"[{name}]\n" + "".join(f"{line}\n" for line in lines) for name, lines in parts.items())


def _limits() -> list[str]:
    """Limits that a process here may set: by default podman asks for more than a root without CAP_SYS_RESOURCE can give."""
    limits = []
    most = {"nofile": 2**20, "nproc": int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))}
    for name, limit in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(limit)[1]
        value = most[name] if hard == resource.RLIM_INFINITY else min(hard, most[name])
        limits.append(f"{name}={value}:{value}")
    return limits


def _storage_conf(work: Path) -> str:
    return f'[storage]\ndriver = "overlay"\ngraphroot = "{work / "storage"}"\nrunroot = "{work / "run"}"\n'


def _install(missing: Sequence[str], run: Runner) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise EngineMissing(f"no Docker daemon answers, and {' and '.join(missing)} is missing; install Docker, or {' '.join(PACKAGES)}")
    run(["apt-get", "update", "-q"])
    run(["env", "RUNLEVEL=1", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qy", "--no-install-recommends", *PACKAGES])


def _works(*command: str) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0


def _output(engine: ContainerEngine, *arguments: str, timeout_s: float = 60.0) -> str | None:
    """Standard output, or None where the command fails."""
    done = subprocess.run([*engine.container, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
    return done.stdout if done.returncode == 0 else None


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
