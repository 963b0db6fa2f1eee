"""How the consumer starts an engine process, and how it puts an exit status into words."""
from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from distributed_comfy.engine.boot import NEEDED
from distributed_comfy.engine.locate import device_environment
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.private_file import append_privately, make_private_folder

BOOT_FILE = Path(__file__).with_name("boot.py")
_PACKAGE = Path(__file__).parents[1]


def spawn(options: EngineOptions) -> subprocess.Popen[bytes]:
    """Start the interpreter with the pipe on its fds 0 and 1.

    The thread that calls this must live as long as the process: Linux kills a child with PR_SET_PDEATHSIG when the thread that started
    it ends.  No ``preexec_fn`` is used, which is unsafe beside threads; the process sets its own death signal.

    Raises:
        OSError: the interpreter cannot be started.
        SettingInvalid: the device is not there.
    """
    make_private_folder(options.folder)
    with append_privately(options.log_file) as log:
        return subprocess.Popen(
            [options.python, str(BOOT_FILE), str(options.log_file), *import_folders()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,  # until boot.py takes over: an interpreter that cannot even start
            cwd=options.folder,
            env=_environment(options),
            bufsize=0,
            **_own_group(),
        )


def import_folders() -> list[str]:
    """Folders that hold this package and what the engine process needs of it."""
    folders = [str(_PACKAGE.parent)]
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folders.append(str(Path(spec.origin).parent.parent))
    return list(dict.fromkeys(folders))


def _environment(options: EngineOptions) -> dict[str, str]:
    ours = os.environ  # noqa: TID251 - handed on to the child whole
    environment = {**ours, **device_environment(options.device, ours)}
    environment.update(PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")  # nothing printed is lost at a kill
    if options.threads:
        environment.update(OMP_NUM_THREADS=str(options.threads), MKL_NUM_THREADS=str(options.threads))
    return environment


def _own_group() -> dict[str, Any]:
    """A Ctrl-C in the terminal must not reach the engine: the consumer decides whether its item is finished first."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """End the engine and everything its nodes started."""
    if sys.platform == "win32":
        process.kill()
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)  # the process leads a session, so its pid is the group's
    except (ProcessLookupError, PermissionError):  # all of them ended (macOS reports a group of zombies as forbidden)
        pass


def status_in_words(status: int) -> str:
    """``exit status 1`` or ``signal 9 (SIGKILL)``."""
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    return f"signal {-status} ({name})"
