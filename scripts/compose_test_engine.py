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
from dataclasses import dataclass
from pathlib import Path

from compose_test_bases import Runner, bases, provide
from install_torch import CPU_INDEX, index_answers

ROOT = Path(__file__).resolve().parent.parent
PODMAN_COMPOSE = "podman-compose==1.6.0"
# Debian's package -> programs of which one must be there.
PODMAN_NEEDS = {
    "podman": ("podman",), "netavark": ("netavark",), "aardvark-dns": ("aardvark-dns",), "catatonit": ("catatonit",),
    "runc": ("crun", "runc"), "iptables": ("iptables", "nft"),
}  # fmt: skip
_MORE_PLACES = ("/usr/lib/podman", "/usr/libexec/podman", "/usr/sbin", "/sbin")
PIP_SETTINGS = {
    "index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "cert", "client-cert", "timeout", "default-timeout",
    "retries",
}  # fmt: skip
MOUNTED = "/dev/pip"
_PULL_TIMEOUT_S = 120.0


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
    build_settings: tuple[tuple[str, str], ...] = ()
    """Values for variables of our compose file that this machine's package index needs."""


def find_engine(work: Path, run: Runner) -> ContainerEngine:
    """Docker if it works here, else podman, which is installed where that can be done by apt-get.

    Raises:
        EngineMissing: neither is there, nor can be.
    """
    if _works("docker", "info") and _works("docker", "compose", "version"):
        return ContainerEngine("docker", ("docker", "compose"), ("docker",))
    _see_to(PODMAN_NEEDS, run)
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
                _see_to({"debootstrap": ("debootstrap",)}, run)
                provide(base, work, run, engine.container)
        labels = json.loads(_output(engine, "image", "inspect", "--format", "{{json .Labels}}", base.name) or "null") or {}
        stand_ins += [f"{base.name} ({labels[label]})" for label in labels if label.endswith("stand-in")]
    return stand_ins


def left_behind(engine: ContainerEngine, project: str) -> dict[str, list[str]]:
    """Containers, volumes and networks of a project, and what an interrupted build left in podman's store of this test."""
    label = ("--filter", f"label=com.docker.compose.project={project}")
    found = {
        "container": ("ps", "--all", "--quiet", "--no-trunc", *label),
        "volume": ("volume", "ls", "--quiet", *label),
        "network": ("network", "ls", "--quiet", *label),
    }
    if engine.name == "podman":  # the store has nothing of anybody else
        found["container"] = ("ps", "--all", "--external", "--quiet", "--no-trunc")
    listed = {kind: (_output(engine, *command) or "").split() for kind, command in found.items()}
    return {kind: ids for kind, ids in listed.items() if ids}


def remove(engine: ContainerEngine, found: dict[str, list[str]]) -> None:
    """Remove what `left_behind` found, containers first: they hold the others."""
    for kind in ("container", "volume", "network"):
        for name in found.get(kind, []):
            _output(engine, *((kind, "rm", name) if kind == "network" else (kind, "rm", "--force", name)))


def forget_old_layers(engine: ContainerEngine) -> None:
    """Remove layers that no build of the last day used; in podman's store of this test only."""
    if engine.name == "podman":
        _output(engine, "image", "prune", "--force", "--filter", "until=24h", timeout_s=120.0)


def unmount(work: Path) -> list[str]:
    """Unmount what podman keeps mounted in its store; what could not be."""
    inside = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    inside = [place for place in inside if place.startswith(f"{work}/")]
    return [place for place in reversed(inside) if subprocess.run(["umount", place], capture_output=True, check=False).returncode != 0]


def _podman(work: Path, run: Runner) -> ContainerEngine:
    environment = {
        "CONTAINERS_CONF": str(_write(work / "containers.conf", _containers_conf(work))),
        "CONTAINERS_STORAGE_CONF": str(_write(work / "storage.conf", _storage_conf(work))),
        "BUILDAH_FORMAT": "docker",  # the other format has no HEALTHCHECK
        "TMPDIR": str(_empty(work / "tmp")),  # an interrupted build leaves its files there
    }
    if not Path("/run/systemd/system").is_dir():
        environment["DISABLE_HC_SYSTEMD"] = "true"  # no timers here: the test runs the health checks itself
    compose = work / "podman-compose/bin/podman-compose"
    if not compose.exists():
        pip = [str(compose.parent / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", PODMAN_COMPOSE]
        run([sys.executable, "-m", "venv", str(work / "podman-compose")], "environment for podman-compose")
        run(pip, PODMAN_COMPOSE)
    options = pip_options(work)
    # Without PyTorch's own index pip takes torch, too, from what this machine is set up with.
    settings = () if index_answers(CPU_INDEX) else (("TORCH_INDEX", ""),)
    variables = ("env", *(f"{name}={value}" for name, value in environment.items()))
    build_options = ("--podman-build-args", " ".join(options)) if options else ()
    return ContainerEngine("podman", (*variables, str(compose)), (*variables, "podman"), build_options, settings)


def pip_options(work: Path) -> list[str]:
    """Options of a build that give pip in it the package index of this machine: its settings, and the local folders and files they name.

    Nothing of it enters an image: it is mounted into ``/dev``, which in a build is a file system in memory.
    """
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    settings: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):  # variables win over files
        name, _, value = line.partition("=")
        name = name.rpartition(".")[2]
        if name in PIP_SETTINGS:
            settings[name] = value.strip().strip("'\"")
    if not settings:
        return []
    volumes: dict[Path, str] = {}
    lines = [f"{name} = {' '.join(_mounted(word, name, volumes) for word in value.split())}\n" for name, value in sorted(settings.items())]
    volumes[_write(work / "pip.conf", "".join(["[global]\n", *lines]))] = f"{MOUNTED}/pip.conf"
    mounts = [part for path, mounted in volumes.items() for part in ("--volume", f"{path}:{mounted}:ro")]
    return [*mounts, "--build-arg", f"PIP_CONFIG_FILE={MOUNTED}/pip.conf"]


def _mounted(word: str, setting: str, volumes: dict[Path, str]) -> str:
    """The word of a setting as it is inside; where it names a local file or folder, that is added to ``volumes``: path -> place inside."""
    path = Path(word.removeprefix("file://"))
    if not path.is_absolute() or not path.exists():
        return word
    # The pages of an index link to files beside its folder.
    shared = path.parent if setting.endswith("index-url") else path
    place = volumes.setdefault(shared, f"{MOUNTED}/{len(volumes)}")
    return word.replace(str(path), place if shared == path else f"{place}/{path.name}")


def _containers_conf(work: Path) -> str:
    """Settings that also work in a container or virtual machine without systemd and with limits that even root cannot raise."""
    engine, containers = [], []
    if not Path("/run/systemd/system").is_dir():
        engine.append('cgroup_manager = "cgroupfs"')
    if shutil.which("crun") is None and shutil.which("runc"):
        engine.append('runtime = "runc"')
    limits = ", ".join(f'"{limit}"' for limit in _limits())
    containers.append(f"default_ulimits = [{limits}]")
    network = ['network_backend = "netavark"', f'network_config_dir = "{work / "networks"}"']
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


def _see_to(needs: dict[str, tuple[str, ...]], run: Runner) -> None:
    """Install the packages that are missing.

    Raises:
        EngineMissing: that cannot be done here.
    """
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), *_MORE_PLACES))
    missing = [package for package, programs in needs.items() if not any(shutil.which(program, path=places) for program in programs)]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise EngineMissing(f"no Docker daemon answers, and for podman {', '.join(missing)} must be installed first")
    run(["apt-get", "update", "-q"], "apt-get update")
    install = ["apt-get", "install", "-qy", "--no-install-recommends", *missing]
    run(["env", "RUNLEVEL=1", "DEBIAN_FRONTEND=noninteractive", *install], f"installation of {' '.join(missing)}")


def _works(*command: str) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0


def _output(engine: ContainerEngine, *arguments: str, timeout_s: float = 60.0) -> str | None:
    """Standard output, or None where the command fails."""
    done = subprocess.run([*engine.container, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
    return done.stdout if done.returncode == 0 else None


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _write(path: Path, text: str) -> Path:
    """For this user only: the address of an index may have a password in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path
