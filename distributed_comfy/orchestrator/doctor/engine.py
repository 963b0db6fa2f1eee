"""Really starts the engine process that a worker of this host would use, and ends it again."""
from __future__ import annotations

import importlib.util
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from distributed_comfy.engine.host import START_TIMEOUT_S, EngineProcess
from distributed_comfy.engine.logfile import TAIL_LINES
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.errors import DistributedComfyError, EngineGaveUp
from distributed_comfy.messages import Capability
from distributed_comfy.orchestrator.doctor.findings import Finding, fail, ok, warn
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.orchestrator.worker import engine_options
from distributed_comfy.settings import Settings

_CHECK = "engine"
_GUESSED = "; what `worker` would run from here, as COMFYUI_PATH is not set: workers that a ComfyUI started run that one"
_POLL_S = 0.1


def check_engine(settings: Settings, servers: Servers, stop: threading.Event) -> Finding:
    """Start the engine, read what it can do, end it.

    Args:
        settings: of this host's workers.
        servers: the engine connects to the blob server before it loads anything.
        stop: ends a start that takes too long for the user.
    """
    try:
        options = _options(settings, servers)
    except DistributedComfyError as error:
        return fail(_CHECK, str(error), "set it as said, or start workers elsewhere only")
    if options.engine == "builtin" and settings.engine is None and importlib.util.find_spec("torch") is None:
        remedy = "set COMFYUI_PATH to a ComfyUI to have workers here; for submitting only, nothing is missing"
        return warn(_CHECK, "none here: no ComfyUI was found, and the built-in engine needs torch", remedy)
    began = time.monotonic()
    try:
        capability = _describe(options, stop)
    except DistributedComfyError as error:
        said = error.what if isinstance(error, EngineGaveUp) else str(error)  # its log goes with the doctor
        where = "" if options.engine == "attach" else f" with {options.python} on {options.device}"
        found = f"{options.engine}{where}: {said}{_last_lines(options, said)}"
        return fail(_CHECK, found, _remedy(options))
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    guessed = options.engine == "builtin" and settings.engine is None
    return ok(_CHECK, f"{_shown(capability)}, ready in {time.monotonic() - began:.1f} s{_GUESSED if guessed else ''}")


def _options(settings: Settings, servers: Servers) -> EngineOptions:
    name = f"doctor-{os.getpid()}"
    folder = settings.cache_folder.absolute() / "workers" / name
    options = engine_options(settings, servers)
    return replace(options, worker=name, folder=folder, log_file=folder / "engine.log", execution_log=None, comfyui_wait_s=0.0)


def _describe(options: EngineOptions, stop: threading.Event) -> Capability:
    process = EngineProcess(options, lambda event: None)
    with _ended_by(stop, process.close):
        try:
            return process.start(timeout_s=START_TIMEOUT_S)
        finally:
            process.close()


@contextmanager
def _ended_by(stop: threading.Event, end: Callable[[], None]) -> Iterator[None]:
    """While the context lasts, the event calls ``end``."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_S):
            if stop.is_set():
                end()
                return

    watcher = threading.Thread(target=watch, name="doctor-engine", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _last_lines(options: EngineOptions, said: str) -> str:
    """The end of what the engine printed, where the error does not tell it already."""
    if not options.log_file.exists():
        return ""
    lines = [line for line in options.log_file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-TAIL_LINES:]
    return "\nits last lines:\n" + "\n".join(lines) if lines and lines[-1] not in said else ""


def _shown(capability: Capability) -> str:
    what = f"{capability.engine} {capability.engine_version}".strip()
    return f"{what} on {capability.device} ({capability.device_class}), {len(capability.node_classes)} node classes"


def _remedy(options: EngineOptions) -> str:
    if options.engine == "attach":
        return "start that ComfyUI, or set DC_COMFYUI_URL to where it listens; a worker waits for it"
    if options.engine == "comfyui":
        return f"start it by hand with `{options.python} {options.comfyui_path}/main.py` and mend what it says"
    return f"run `{options.python} -m pip install 'distributed-comfy[worker]'`"
