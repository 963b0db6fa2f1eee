"""What workers take over from this ComfyUI, so that they have the same models and node packs: arguments and environment."""
from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from distributed_comfy.agent.launching import Surroundings
from distributed_comfy.settings import environment_at_start

_NOT_FOR_WORKERS = (
    # the server and its browser
    "--listen", "--port", "--tls-keyfile", "--tls-certfile", "--enable-cors-header", "--max-upload-size", "--auto-launch",
    "--disable-auto-launch", "--dont-print-server", "--multi-user", "--front-end-version", "--front-end-root", "--windows-standalone-build",
    "--enable-compress-response-body", "--log-stdout", "--quick-test-for-ci", "--enable-manager", "--enable-manager-legacy-ui",
    "--disable-manager-ui",
    # what a worker has for itself
    "--output-directory", "--input-directory", "--temp-directory", "--database-url",
    # what its device decides
    "--cpu", "--cuda-device", "--default-device", "--oneapi-device-selector",
    # paths, which are given anew because a worker starts in another folder
    "--base-directory", "--user-directory", "--extra-model-paths-config",
)  # fmt: skip
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")
_MOST_DEVICES = 32
"""So many ComfyUI numbers."""
_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"


def read_surroundings(args: Any, argv: Sequence[str]) -> Surroundings:
    """Of the ComfyUI of this process.

    Args:
        args: as ComfyUI parsed them.
        argv: the words it parsed, without the program.
    """
    environment = environment_at_start(changed_variables(args))
    for name in _VISIBLE:  # what ComfyUI wrote there itself is also what it finds after a restart within its process
        if environment.get(name) in _written(args):
            del environment[name]
    if sys.flags.no_user_site:  # python -s, as the portable build has it
        environment["PYTHONNOUSERSITE"] = "1"
    return Surroundings(environment, (*_paths(args), *for_workers(argv)))


def for_workers(argv: Sequence[str]) -> list[str]:
    """The arguments that hold for a worker as well, in their order."""
    return [word for words in _options(argv) if not _is_masters(words[0]) for word in words]


def hides_devices(args: Any) -> bool:
    """Whether ComfyUI's own arguments keep devices of this host from its process."""
    return any(_given(args, name) is not None for name in ("cuda_device", "oneapi_device_selector"))


def changed_variables(args: Any) -> list[str]:
    """Variables that ComfyUI set in its own process, which must not reach workers."""
    changed = [_ALLOCATOR]
    if _given(args, "cuda_device") is not None or _given(args, "default_device") is not None:
        changed += _VISIBLE
    if _given(args, "oneapi_device_selector") is not None:
        changed.append("ONEAPI_DEVICE_SELECTOR")
    return changed


def _written(args: Any) -> list[str]:
    """The values that ComfyUI gives to the variables of visible devices."""
    first = _given(args, "default_device")
    reordered = [] if first is None else [",".join(map(str, [first, *(number for number in range(_MOST_DEVICES) if number != first)]))]
    return [*reordered, *([] if _given(args, "cuda_device") is None else [str(args.cuda_device)])]


def _options(argv: Sequence[str]) -> Iterator[list[str]]:
    """Each option with its values."""
    words: list[str] = []
    for word in argv:
        if word.startswith("--") and words:
            yield words
            words = []
        words.append(word)
    if words:
        yield words


def _is_masters(word: str) -> bool:
    """Argparse takes the beginning of an option's name for it."""
    name = word.partition("=")[0]
    return any(option == name or (len(name) > len("--") and option.startswith(name)) for option in _NOT_FOR_WORKERS)


def _paths(args: Any) -> list[str]:
    base, user = _given(args, "base_directory"), _given(args, "user_directory")
    words = ["--base-directory", os.path.abspath(base)] if base else []
    words += ["--user-directory", os.path.abspath(user)] if user else []
    for files in _given(args, "extra_model_paths_config") or ():
        words += ["--extra-model-paths-config", *map(os.path.abspath, files)]
    return words


def _given(args: Any, name: str) -> Any:
    """An argument that this ComfyUI may not know."""
    return getattr(args, name, None)
