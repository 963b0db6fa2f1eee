"""What an engine process is started with: plain facts, sent over its pipe as the first message."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from distributed_comfy.engine.base import Engine
from distributed_comfy.settings import LogFormat

NodeProvider = Callable[..., dict[str, type]]
"""Gives the cluster's own node classes for a `distributed_comfy.nodes.context.NodeContext`; called after torch may be imported.
An engine may add ``nothing=[marker]``, ``cropper`` and ``sampling``, see `distributed_comfy.nodes.registry`."""

NODE_PROVIDER = "distributed_comfy.nodes.registry:node_classes"
"""The provider of a real worker.  Engines are handed their node classes, so this is a name and not an import."""


class EngineFactory(Protocol):
    """What the package of an engine offers as ``create_engine``."""

    def __call__(self, options: EngineOptions, context: Any, provide_nodes: NodeProvider) -> Engine:
        """The engine, ready to run; called in the main thread of the engine process.

        Args:
            options: as given by the consumer.
            context: the `engine.context.GraphContext` of this process; the engine calls its `begin` and `finish` round each run.
            provide_nodes: gives the node classes to register beside the engine's own.
        Raises:
            EngineStartFailed: something the engine needs is not there; the reason holds the remedy.
        """


@dataclass(frozen=True)
class EngineOptions:
    """One engine process; paths are absolute."""

    engine: Literal["comfyui", "builtin", "attach"]
    worker: str
    """Name of the worker, for messages and results."""
    python: str
    """Interpreter that runs the engine."""
    folder: Path
    """The worker's own folder; the engine keeps ``input``, ``output``, ``temp`` and ``outgoing`` in it."""
    log_file: Path
    """Takes everything the engine and its nodes print."""
    blob_url: str
    key_prefix: str = "dc:"
    chunk_bytes: int = 2**20
    shared_memory: bool = True
    """Whether results may go through the memory of this host."""
    blob_limit_bytes: int = 2**33
    blob_ttl_s: int = 86_400
    device: str = "cpu"
    tags: tuple[str, ...] = ()
    cache_folder: Path = Path()
    """Input files by content hash."""
    comfyui_path: Path | None = None
    comfyui_base_directory: Path | None = None
    comfyui_args: tuple[str, ...] = ()
    comfyui_url: str = ""
    """The running ComfyUI that engine ``attach`` drives."""
    comfyui_headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Of each request to it; they may hold a password."""
    comfyui_token: str = field(default="", repr=False)
    """Of the node pack there, where the user gave it."""
    comfyui_token_file: Path | None = None
    """Where the token of a ComfyUI of this user on this host lies; read each time, for it may be made later.  None for a ComfyUI that is
    reached by another address than loopback: it may be anybody's."""
    comfyui_wait_s: float = 10.0
    """How long a start waits for it; the next one follows at once."""
    execution_log: Path | None = None
    """One line ``job index claim pid`` for each execution that begins."""
    threads: int = 0
    """Threads for work on the CPU; 0 leaves the choice to torch."""
    preload: bool = False
    """Its first item comes at once, so all is loaded before it is ready; else an engine may load with its first item what takes long."""
    beat_interval_s: float = 1.0
    stall_timeout_s: float = 900.0
    feed_timeout_s: float = 600.0
    """How long the last stage waits for the next value of its feed."""
    log_level: str = "INFO"
    log_format: LogFormat = "text"
    """``json``: also what nodes print becomes lines of JSON, as far as it goes through Python."""
    node_provider: str = NODE_PROVIDER
    import_paths: tuple[str, ...] = ()
    """Folders appended to ``sys.path`` of the engine, besides those of this package."""
