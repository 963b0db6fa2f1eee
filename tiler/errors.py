"""Every error that ``tiler`` raises: a stable code and its facts as fields, like the tree of ``distributed_comfy.errors``.

The two trees do not know each other, because ``tiler`` imports nothing of ours; code and fields are plain JSON values, so whoever
calls can put them on the wire.
"""
from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any, ClassVar


class TilerError(Exception):
    """Base of the tree; a subclass is a code and a sentence with a remedy."""

    code: ClassVar[str] = "tiler_error"
    """Stable name for scripts, logs and the wire."""
    sentence: ClassVar[str] = "{reason}"
    """Message with one ``{field}`` for each fact the raiser must give."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        super().__init__(self.sentence.format(**fields))

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuilt, (type(self), self.fields))

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The facts that `sentence` names, in order."""
        return tuple(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(cls.sentence) if name))


class TileOptionInvalid(TilerError):
    """An option of the plan has a value that cannot work."""

    code = "tile_option_invalid"
    sentence = "{option} is {value}; it must be {expected}"


class TooManyTiles(TilerError):
    """The plan would have more steps than anybody waits for."""

    code = "too_many_tiles"
    sentence = "a canvas of {width} x {height} needs {steps} tiles, at most {limit} are planned; use larger tiles"


class ImageInvalid(TilerError):
    """The image is none that can be cut into tiles."""

    code = "tile_image_invalid"
    sentence = "the image {problem}; it must be {expected}"


class FrameOverLimit(TilerError):
    """Not even one frame fits into the memory that an item may take."""

    code = "tile_frame_over_limit"
    sentence = "one frame of a tile takes {bytes_per_frame} bytes, an item may take {limit_bytes}; use smaller tiles or raise the limit"


class TileNotReady(TilerError):
    """A tile was to be cut while tiles that it reads are not blended."""

    code = "tile_not_ready"
    sentence = "tile {index} cannot be cut before tiles {waits_for} are blended; cut only what the schedule names"


class CropGone(TilerError):
    """A tile was to be cut a second time, after its surroundings were refined."""

    code = "tile_crop_gone"
    sentence = "tile {index} cannot be cut again, what it reads has changed; keep a crop until its tile is here, or start from the image"


class TileUnknown(TilerError):
    """The plan has no step of this index."""

    code = "tile_unknown"
    sentence = "the plan has no tile {index}, only 0 to {last}; use the plan that the tile was cut with"


class TileShapeError(TilerError):
    """A refined tile has another size or type than the crop it came from."""

    code = "tile_shape"
    sentence = "tile {index} came back as {actual}, it must be {expected}; use a model and a VAE that keep the size of the image"


class TileNotFinite(TilerError):
    """A refined tile has NaN or infinite pixels."""

    code = "tile_not_finite"
    sentence = "tile {index} came back with {count} values that are NaN or infinite; use a VAE of higher precision (float32 or bfloat16)"


class DuplicateDiffers(TilerError):
    """The same tile came twice, with different pixels."""

    code = "tile_duplicate_differs"
    sentence = "tile {index} came twice with different pixels; run all copies of a tile on one class of device"


class TileMissing(TilerError):
    """The image is asked for before every tile is blended."""

    code = "tile_missing"
    sentence = "{count} of {steps} tiles are missing: {indexes}; run these again"


def all_errors(base: type[TilerError] = TilerError) -> Iterator[type[TilerError]]:
    """Every class of the tree, the base first."""
    yield base
    for child in base.__subclasses__():
        yield from all_errors(child)


def _rebuilt(cls: type[TilerError], fields: dict[str, Any]) -> TilerError:
    return cls(**fields)
