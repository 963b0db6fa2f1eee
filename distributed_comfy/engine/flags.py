"""Arguments of ComfyUI's command line, as far as they can change results."""
from __future__ import annotations

from collections.abc import Iterable

PARTNER_NODES = "--enable-api-nodes"
"""Our own argument: load the nodes that call paid services.  They are off otherwise, because a worker has no key for them."""

WITHOUT_EFFECT = (
    "--port", "--listen", "--verbose", "--log-stdout", "--preview-method", "--preview-size", "--cache-classic", "--cache-lru",
    "--cache-none", "--cache-ram", "--database-url", "--extra-model-paths-config", "--auto-launch", "--disable-auto-launch",
    "--front-end-version", "--front-end-root", "--enable-cors-header", "--tls-keyfile", "--tls-certfile", "--max-upload-size",
    "--disable-api-nodes", "--multi-user", "--windows-standalone-build", "--dont-print-server", "--user-directory", PARTNER_NODES,
)  # fmt: skip
"""ComfyUI arguments that do not touch results."""


def telling_flags(arguments: Iterable[str]) -> str:
    """The arguments that matter, with their values."""
    kept: list[str] = []
    relevant = False
    for word in arguments:
        if word.startswith("--"):
            name = word.split("=")[0]
            relevant = name not in WITHOUT_EFFECT and not name.endswith("-directory")
        if relevant:
            kept.append(word)
    return " ".join(kept)
