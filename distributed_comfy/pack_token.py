"""The node pack's token as those see it who are not the pack: where it lies, and the key that workers make of it.

A worker that drives a ComfyUI with the pack never sends the token, which may do everything there, but a key that opens the routes for
such workers alone.
"""
from __future__ import annotations

import hashlib
import hmac
import os
import re
from pathlib import Path

from distributed_comfy.settings import Settings

FILE_NAME = "comfyui.token"
KEY_HEADER = "X-Distributed-Comfy-Attach"
"""Carries what `attach_key` gives."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_PURPOSE = b"distributed-comfy: engine attach"


def token_path(settings: Settings) -> Path:
    """Where the token of this user lies: beside the options of the pack."""
    return settings.workers_path.expanduser().absolute().with_name(FILE_NAME)


def is_token_text(text: str) -> bool:
    """Whether a text looks like a token."""
    return _TOKEN.fullmatch(text) is not None


def kept_token(path: Path) -> str:
    """The token in a file of this user alone; empty where there is none that counts."""
    try:
        with path.open(encoding="ascii") as file:
            private = os.name != "posix" or not os.fstat(file.fileno()).st_mode & 0o077
            text = file.read(256).strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if private and is_token_text(text) else ""


def attach_key(token: str) -> str:
    """What proves that whoever drives this ComfyUI has its token, and from which the token cannot be found."""
    return hmac.new(token.encode(), _PURPOSE, hashlib.sha256).hexdigest()
