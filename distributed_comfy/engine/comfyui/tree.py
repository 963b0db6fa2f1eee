"""Brings a ComfyUI tree up inside this process, as its own ``main.py`` would, without listening on any port.

ComfyUI's ``main`` module is imported and its `start_comfyui` called, rather than its steps repeated here: paths, prestart scripts,
import order (``utils`` before ``server``), memory settings and custom nodes then are those of whatever version the tree has.
"""
from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_comfy.engine.comfyui.device import unusable_device
from distributed_comfy.engine.comfyui.launch import tree_arguments, tree_commit, tree_root, web_folder
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.errors import EngineGaveUp, EngineStartFailed

log = logging.getLogger(__name__)

EXECUTOR_TIMEOUT_S = 60.0
HOOK_BREAKER = "hook_breaker_ac10a0"
"""ComfyUI's module that keeps packs from replacing core functions for good."""

BOUND_BY_THE_PROGRAM = ("cuda_malloc",)
"""Modules that ``main.py`` imports only where it is the program, before torch, and that its functions use.

The one chooses torch's allocator when it is imported; on a GPU `start_comfyui` looks into it again.
"""


@dataclass(frozen=True)
class ComfyTree:
    """A running tree: the modules and objects that the engine works with."""

    root: Path
    version: str
    """Release, and the commit where the tree is a git checkout."""
    execution: Any
    nodes: Any
    folder_paths: Any
    model_management: Any
    server: Any
    """The ``PromptServer``."""
    executor: Any
    """The ``PromptExecutor``; keeps models and node outputs between prompts."""
    loop: asyncio.AbstractEventLoop
    """The server's loop; runs in a thread of its own, for nodes that send or schedule something."""

    def unload(self) -> None:
        """Unload models, forget node outputs and give device memory back."""
        self.model_management.unload_all_models()
        self.executor.reset()
        self.collect()

    def collect(self) -> None:
        """Collect garbage, give unused device memory back and undo packs' changes of core functions, as ComfyUI does between prompts."""
        gc.collect()
        self.model_management.soft_empty_cache()
        if HOOK_BREAKER in sys.modules:
            sys.modules[HOOK_BREAKER].restore_functions()

    def settle(self) -> None:
        """Start-up is over: spare what it made from every later `collect`, which would look through half a million objects for 0.25 s."""
        gc.collect()
        gc.freeze()

    def forget_listings(self) -> None:
        """Let ComfyUI list its model folders afresh.

        It compares the folders' time stamps only, so a file that came within the same tick stays unknown (a tick lasts two seconds on
        some disks), and a model folder that vanished (its disk is gone) makes every class that lists it raise.  Entries are outdated
        and not removed: another thread may be between ComfyUI's look whether there is one and its use.
        """
        listings = self.folder_paths.filename_list_cache
        for name, entry in list(listings.items()):
            listings[name] = (entry[0], {}, *entry[2:])

    def blocker(self) -> Any:
        """The value that keeps every node behind it from running."""
        return importlib.import_module("comfy_execution.graph_utils").ExecutionBlocker(None)

    def sampling(self) -> Any:
        """The class that lists ``SAMPLERS`` and ``SCHEDULERS``, those of node packs among them."""
        return importlib.import_module("comfy.samplers").KSampler

    def close(self) -> None:
        """Stop the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)


def open_tree(options: EngineOptions) -> ComfyTree:
    """Start ComfyUI; takes seconds, and once per process.

    Raises:
        EngineStartFailed: no tree there, or a package or the device is missing.
        EngineGaveUp: refused arguments, or it ends during start-up.
    """
    root = tree_root(options)
    web_folder(options).mkdir(parents=True, exist_ok=True)
    sys.argv = [str(root / "main.py"), *tree_arguments(options)]
    sys.path.insert(0, str(root))
    log.info("starting ComfyUI in %s with %s", root, " ".join(sys.argv[1:]))
    gc.disable()  # what a start makes stays (`ComfyTree.settle`); a look through it at every thousandth object costs a fifth of its time
    try:
        main = _import_main(root)
        loop, server, executor = _start(main)
    except SystemExit as error:  # argparse, a missing package or a refused database end the process
        raise EngineGaveUp(what=f"ComfyUI ended with status {error.code}", log_file=str(options.log_file), log_tail="") from error
    except ModuleNotFoundError as error:
        remedy = f"run: {sys.executable} -m pip install -r {root / 'requirements.txt'}"
        raise EngineStartFailed(reason=f"ComfyUI needs {error.name}, which {sys.executable} does not have; {remedy}") from error
    except (AssertionError, RuntimeError) as error:  # torch's words for a device that it cannot use
        reason = unusable_device(options.device, sys.modules.get("torch"))
        if not reason:
            raise
        raise EngineStartFailed(reason=reason) from error
    finally:
        gc.enable()
    threading.Thread(target=loop.run_forever, name="comfyui-loop", daemon=True).start()
    return ComfyTree(
        root=root,
        version=_version(root),
        execution=sys.modules["execution"],
        nodes=sys.modules["nodes"],
        folder_paths=sys.modules["folder_paths"],
        model_management=sys.modules["comfy.model_management"],
        server=server,
        executor=executor,
        loop=loop,
    )


def _import_main(root: Path) -> Any:
    """ComfyUI's ``main`` module, after what ``main.py`` does only when it is the program."""
    if "torch" in sys.modules:
        log.warning("torch was imported before ComfyUI, so ComfyUI cannot choose its memory allocator")
    importlib.import_module("comfy.options").enable_args_parsing()
    arguments = importlib.import_module("comfy.cli_args").args
    variables = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL": "1"}
    if arguments.deterministic:
        variables["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    for name, value in variables.items():
        os.environ.setdefault(name, value)  # noqa: TID251 - written for libraries, not read
    bound = {name: importlib.import_module(name) for name in BOUND_BY_THE_PROGRAM}
    main = _once_logged(lambda: importlib.import_module("main"))
    vars(main).update(bound)
    for name in ("main", "execution", "nodes", "server", "utils"):
        path = sys.modules[name].__file__ or next(iter(sys.modules[name].__path__), "")
        if root not in Path(path).resolve().parents:
            raise EngineStartFailed(reason=f"module {name!r} comes from {path} and not from ComfyUI; remove that package from sys.path")
    return main


def _once_logged(start: Callable[[], Any]) -> Any:
    """Run ``start`` without letting it add a second handler for the same lines; its log level stays, the user's arguments set it."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    result = start()
    if handlers:
        root.handlers[:] = handlers
    return result


def _start(main: Any) -> tuple[asyncio.AbstractEventLoop, Any, Any]:
    """Loop, server and executor.

    ``start_comfyui`` ends by starting ``prompt_worker`` in a thread.  That function builds the executor with the cache settings of its
    version and then waits for prompts; ours takes its place, lets it build, and stops it at its first look into the queue.
    """
    built: queue.SimpleQueue[Any] = queue.SimpleQueue()
    prompt_worker = main.prompt_worker

    def build(_queue: Any, *rest: Any) -> None:
        built.put(_built_executor(main.execution, prompt_worker, rest))

    main.prompt_worker = build
    loop, server, _ = main.start_comfyui()
    loop.run_until_complete(server.setup())
    try:
        executor = built.get(timeout=EXECUTOR_TIMEOUT_S)
    except queue.Empty:
        executor = None
    if executor is None:
        raise EngineStartFailed(reason="this ComfyUI builds its executor in an unknown way; use a version that is tested with this project")
    return loop, server, executor


class _FirstLook(Exception):
    """The worker function asked for its first prompt."""


class _NoPrompts:
    """A queue that ends whoever waits at it."""

    def get(self, timeout: float | None = None) -> Any:
        raise _FirstLook


def _built_executor(execution: Any, prompt_worker: Any, rest: tuple[Any, ...]) -> Any:
    """The executor that ``prompt_worker`` builds; None if it builds none."""
    executors: list[Any] = []
    executor_class = execution.PromptExecutor

    def record(*args: Any, **kwargs: Any) -> Any:
        executors.append(executor_class(*args, **kwargs))
        return executors[-1]

    execution.PromptExecutor = record
    try:
        prompt_worker(_NoPrompts(), *rest)
    except _FirstLook:
        pass
    finally:
        execution.PromptExecutor = executor_class
    return executors[-1] if executors else None


def _version(root: Path) -> str:
    release = str(importlib.import_module("comfyui_version").__version__)
    commit = tree_commit(root)
    return f"{release} ({commit})" if commit else release
