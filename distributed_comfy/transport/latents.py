"""ComfyUI's ``.latent`` files: safetensors with one tensor of samples, as its SaveLatent writes and its LoadLatent reads them.

The format: the length of a JSON header (8 bytes), the header, the numbers.
"""
from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed_comfy.errors import FileDamaged

_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
}  # fmt: skip
_NUMPY_TYPES = {stored: np.dtype(name).newbyteorder("<") for name, stored in _TYPES.items()}


def latent_file(samples: NDArray[Any], about: Mapping[str, str] | None = None) -> bytes:
    """The content of a file; samples of a type that the format lacks become float32.

    Args:
        samples: of any shape.
        about: what the file says about itself.
    """
    if samples.dtype.name not in _TYPES:
        samples = samples.astype(np.float32)
    data = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    kind, shape = _TYPES[samples.dtype.name], list(samples.shape)
    fields: dict[str, Any] = {} if about is None else {"__metadata__": dict(about)}
    fields["latent_tensor"] = {"dtype": kind, "shape": shape, "data_offsets": [0, len(data)]}
    # LoadLatent takes this one for a mark that the samples need no factor.
    fields["latent_format_version_0"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    header = json.dumps(fields).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data


def read_latent(path: Path) -> NDArray[Any]:
    """The samples of a file.

    Raises:
        FileDamaged: it is no such file.
    """
    content = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", content)
        entry = json.loads(content[8 : 8 + length])["latent_tensor"]
        start, end = entry["data_offsets"]
        data = memoryview(content)[8 + length + start : 8 + length + end]
        if entry["dtype"] == "BF16":  # numpy has no such type; LoadLatent makes float32 of it as well
            samples: NDArray[Any] = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            samples = np.frombuffer(data, _NUMPY_TYPES[entry["dtype"]])
        shaped: NDArray[Any] = samples.reshape(entry["shape"])
        return shaped
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError, struct.error) as error:
        raise FileDamaged(name=path.name, found=f"{type(error).__name__}: {error}", expected="a latent as SaveLatent writes it") from error
