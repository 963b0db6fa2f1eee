"""The pack's token: what proves that whoever asks for a change may read this user's own files."""
from __future__ import annotations

import hmac
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from distributed_comfy.errors import OptionWrong
from distributed_comfy.pack_token import is_token_text, token_path

__all__ = ["HEADER", "is_token", "read_token", "token_path"]

log = logging.getLogger(__name__)

HEADER = "X-Distributed-Comfy-Token"
_PRIVATE = 0o600


def read_token(path: Path) -> str:
    """The token of this installation, which is made the first time; a file that others could read, or that holds no token, is replaced.

    Raises:
        OptionWrong: the file can be neither read nor written.
    """
    try:
        found = _kept(path)
        return found or _made(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = f"cannot be used: {error}; remove it, or let this user write there"
        raise OptionWrong(name=str(path), reason=reason) from error


def is_token(given: str, token: str) -> bool:
    """Whether somebody has given the token; takes as long for a wrong one."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _kept(path: Path) -> str:
    """What the file holds; empty where there is none that counts."""
    try:
        with path.open(encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(256).strip()
    except FileNotFoundError:
        return ""
    if os.name == "posix" and mode & 0o077:
        log.warning("%s could be read by other users; there is a new token", path)
        return ""
    return text if is_token_text(text) else ""


def _made(path: Path) -> str:
    """A new token, written whole; of two processes that make one at the same time, both use the one that was written last."""
    token = secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE), "w", encoding="ascii") as file:
            file.write(token + "\n")
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return _kept(path) or token
