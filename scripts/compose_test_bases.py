"""Base images for a machine that reaches Debian's packages and no image registry: made by debootstrap, under the names in our files.

They stand in for the real ones in a store that only `make compose-test` uses, and carry a label that says so.  The server is Debian's
own Valkey of the same minor version, the interpreter Debian's Python of the same minor version.
"""
from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Runner = Callable[[Sequence[str], str], None]
"""Runs a command, shown to people under a name, and raises where it fails."""

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = "distributed-comfy.stand-in"

_PYTHON_LINKS = "ln -s /usr/bin/python3 /usr/local/bin/python3 && ln -s /usr/bin/python3 /usr/local/bin/python"
# The users and folders of the image that Valkey's maintainers publish.
_VALKEY_LAYOUT = (
    "userdel valkey && groupadd -g 1000 valkey && useradd -r -u 999 -g valkey -d /data valkey && mkdir /data && chown valkey:valkey /data"
)


@dataclass(frozen=True)
class Base:
    """One base image and what stands in for it."""

    name: str
    """As our files name it."""
    suite: str
    """Debian's release."""
    packages: tuple[str, ...]
    arrange: str
    """Shell command, run inside, that makes it look like the real one."""
    changes: tuple[str, ...]
    """Dockerfile instructions for the image's configuration."""


def bases() -> list[Base]:
    """What our files build on and start from."""
    python = _named(ROOT / "docker/Dockerfile", r"^ARG PYTHON_IMAGE=(\S+)$")
    valkey = _named(ROOT / "docker-compose.yml", r"^\s*image: (\S*valkey\S*)$")
    path = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
    return [
        Base(python, "bookworm", ("python3", "python3-venv", "python3-pip", "ca-certificates"), _PYTHON_LINKS, (path, "CMD python3")),
        Base(valkey, "trixie", ("valkey-server",), _VALKEY_LAYOUT, (path, "VOLUME /data", "WORKDIR /data", "CMD valkey-server")),
    ]


def provide(base: Base, work: Path, run: Runner, podman: Sequence[str]) -> None:
    """Make the stand-in for ``base``; about half a minute.

    Args:
        base: which.
        work: folder for the root file system and its archive; both are removed again.
        run: executes a command and raises where it fails.
        podman: the program with its options.
    """
    root, archive = work / f"root-{base.suite}", work / f"{base.suite}.tar"
    try:
        # In a mount namespace of its own: what debootstrap mounts is gone with it, however it ends.
        apart = ("unshare", "--mount", "--propagation", "private")
        packages = f"--include={','.join(base.packages)}"
        run([*apart, "debootstrap", "--variant=minbase", packages, base.suite, str(root)], f"debootstrap of {base.suite}")
        tidy = "apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/*.log /usr/share/doc/*"
        run([*apart, "chroot", str(root), "sh", "-ec", f"{base.arrange}; {tidy}"], "users and folders in it")
        label = f'LABEL {STAND_IN}="Debian {base.suite}: {" ".join(base.packages)}"'
        changes = [part for change in (*base.changes, label) for part in ("--change", change)]
        run(["tar", "--numeric-owner", "-C", str(root), "-cf", str(archive), "."], "archive of it")
        run([*podman, "import", "--quiet", *changes, str(archive), base.name], f"import as {base.name}")
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", str(root), str(archive)], check=False)


def _named(file: Path, pattern: str) -> str:
    found = re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise LookupError(f"{file} names no image by {pattern!r}")
    return found.group(1)
