"""The pack of this process: its parts, each of which may fail without keeping ComfyUI from starting."""
from __future__ import annotations

import importlib
import importlib.util
import logging
from functools import cached_property
from typing import Any

from distributed_comfy.comfyui.clash import keep_classes, must_yield
from distributed_comfy.comfyui.context import PackContext
from distributed_comfy.comfyui.copies import Copies
from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.options import Options, options_file
from distributed_comfy.comfyui.route_threads import RouteThreads
from distributed_comfy.comfyui.saves import SaveWatch
from distributed_comfy.comfyui.session import Session
from distributed_comfy.engine.attach.capability import OUR_CATEGORY
from distributed_comfy.engine.comfyui.crops import ComfyTileCropper
from distributed_comfy.nodes.registry import DISPLAY_NAMES, node_classes
from distributed_comfy.settings import Settings

log = logging.getLogger(__name__)

_PARTS = (
    ("distributed_comfy.comfyui.intake", "install_intake"),
    ("distributed_comfy.comfyui.ordinary", "install_ordinary"),
    ("distributed_comfy.comfyui.all_routes", "install_routes"),
    ("distributed_comfy.comfyui.templates", "install_templates"),
)
"""Module and function of each part; the function gets the `Pack`, while ComfyUI loads its custom nodes."""


class Pack:
    """One per process.

    Args:
        settings: of this process.
        host: the ComfyUI of this process.
    """

    def __init__(self, settings: Settings, host: ComfyHost) -> None:
        self.settings = settings
        self.host = host
        self._options = options_file(settings)
        self.session = Session(settings, host, self._options)
        self.copies = Copies(host)
        """Where it was loaded from."""
        self.threads = RouteThreads()
        """For routes."""
        self.context = PackContext()
        self.jobs: Any = None
        """Jobs of prompts that this ComfyUI accepted."""
        self.ordinary: Any = None
        """Prompts without distributed nodes that run on workers."""
        self.classes = node_classes(self.context, nothing=[host.blocker()], cropper=ComfyTileCropper(), sampling=host.sampling())
        """class_type -> class for ComfyUI; a part may put its own in place of one."""
        self.web_directory: str | None = None

    @cached_property
    def saves(self) -> SaveWatch:
        """What nodes of this ComfyUI are about to save; seen from the first use on."""
        return SaveWatch(self.host.folder_paths, self.host)

    @property
    def display_names(self) -> dict[str, str]:
        """class_type -> name in ComfyUI's editor."""
        return {name: DISPLAY_NAMES[name] for name in self.classes if name in DISPLAY_NAMES}

    @property
    def options(self) -> Options:
        """As they are now."""
        return self._options.current

    def change(self, name: str, value: Any) -> Options:
        """Change an option, and act by it from now on; see `OptionsFile.change`."""
        changed = self._options.change(name, value)
        self.session.workers.options_changed()
        return changed

    def open(self) -> bool:
        """Put everything into ComfyUI and begin to connect; false where another pack has our classes already."""
        if must_yield(self.host, self.classes):
            return False
        self.install_parts()
        _hide_internal(self.classes)
        keep_classes(self.host, self.classes)
        self.session.start()
        return True

    def end(self) -> None:
        """ComfyUI ends: so does all that the pack has begun."""
        self.threads.end()
        self.session.end()

    def install_parts(self) -> None:
        """Let each part put itself into ComfyUI; one that cannot is told in the log and left out."""
        for module, function in _PARTS:
            if importlib.util.find_spec(module) is None:
                continue
            try:
                getattr(importlib.import_module(module), function)(self)
            except Exception:  # whatever is wrong with us, ComfyUI is to start
                log.exception("%s of distributed-comfy does not work with ComfyUI %s; please report it", function, self.host.version)


def _hide_internal(classes: dict[str, Any]) -> None:
    """Keep the classes of inner nodes out of the menu and search of ComfyUI's editor, by the marks that its versions know."""
    for found in classes.values():
        if found.CATEGORY == OUR_CATEGORY:
            found.DEPRECATED = found.DEV_ONLY = True
