"""What `make fuzz` has found: each file is refused by name now, and stays here so that it always is.

A folder is named by what reads its files; whatever is found next becomes a file here.
"""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_comfy.access.token import read_token
from distributed_comfy.errors import (
    FileDamaged,
    FrameError,
    MessageVersionUnknown,
    PromptMalformed,
    PromptUnreadable,
    TokenUnreadable,
    from_wire,
)
from distributed_comfy.messages import ItemResult, load
from distributed_comfy.transport.frames import decode_tensor
from distributed_comfy.transport.latents import read_latent
from distributed_comfy.workflow.parse import parse_prompt

FOLDER = Path(__file__).parent / "findings"


def raise_it(file: Path) -> None:
    raise from_wire(json.loads(file.read_text()))


READERS: dict[str, tuple[Callable[[Path], object], tuple[type[Exception], ...]]] = {
    "records": (lambda file: load(ItemResult, file.read_bytes()), (MessageVersionUnknown,)),
    "errors": (raise_it, (type(from_wire({})),)),
    "tokens": (lambda file: read_token(file.read_text()), (TokenUnreadable,)),
    "latents": (read_latent, (FileDamaged,)),
    "frames": (lambda file: decode_tensor(file.read_bytes(), limit_bytes=2**20), (FrameError,)),
    "prompts": (parse_prompt, (PromptUnreadable, PromptMalformed)),
}


@pytest.mark.parametrize("name", sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*")))
def test_what_was_found_once_is_refused_by_name(name: str) -> None:
    read, refusals = READERS[name.split("/")[0]]
    with pytest.raises(refusals):
        read(FOLDER / name)
