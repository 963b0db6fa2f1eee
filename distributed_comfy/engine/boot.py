"""First file of an engine process: runs by whatever interpreter the engine needs and finds this package from there.

    PYTHON boot.py LOG_FILE PATH...

The interpreter may be ComfyUI's own, which has other versions of everything and none of this project.  So the folders of this package
and of what it needs are put at the *end* of ``sys.path``: whatever ComfyUI brings wins.  Nothing of this project is imported before
that; this file uses the standard library only.
"""
from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import sys

NEEDED = {
    "msgpack": "msgpack",
    "redis": "redis",
    "xxhash": "xxhash",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "pydantic_settings": "pydantic-settings",
}
"""Modules without which the engine process cannot speak to its consumer or to the blob store, and what pip calls them."""

EXIT_CANNOT_IMPORT = 78
"""Exit status (sysexits' EX_CONFIG): the last line of the log is the reason, with its remedy."""


def main() -> None:
    """Take the pipe away from everything that prints, find the package, and run the engine."""
    log_file, *paths = sys.argv[1:]
    pipe_in, pipe_out = _keep_the_pipe(log_file)
    # A fault in native code shows in the log as a Python traceback; of all threads it would be longer than the tail that people see.
    faulthandler.enable(file=2, all_threads=False)
    own = os.path.dirname(os.path.abspath(__file__))
    # Python put this file's folder first, and its modules would hide others of the same names.
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.curdir) != own]
    sys.path += [path for path in paths if path not in sys.path]
    del sys.argv[1:]  # ComfyUI and its nodes read arguments
    gc.disable()  # as in `distributed_comfy.lasting_imports`, which cannot be imported yet
    _require()
    process = importlib.import_module("distributed_comfy.engine.process")
    gc.freeze()
    gc.enable()
    process.main(pipe_in, pipe_out)


def _keep_the_pipe(log_file: str) -> tuple[int, int]:
    """Private copies of fds 0 and 1, which nothing else knows; 0 becomes empty, 1 and 2 the log.

    Copies that `os.dup` makes are not inherited by programs that nodes start, so the pipe closes when this process ends.
    """
    pipe_in, pipe_out = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (pipe_in, pipe_out):
            msvcrt.setmode(descriptor, os.O_BINARY)
    return pipe_in, pipe_out


def _require() -> None:
    failures = {}
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            failures[name] = f"{name} ({error})"
    if failures:
        # One line, because the consumer shows it as the reason; with all packages, so that one pip run mends it.
        remedy = f"{sys.executable} -m pip install {' '.join(NEEDED[name] for name in failures)}"
        sys.stderr.write(f"the engine's interpreter cannot import {', '.join(failures.values())}; run: {remedy}\n")
        sys.stderr.flush()
        os._exit(EXIT_CANNOT_IMPORT)


if __name__ == "__main__":
    main()
