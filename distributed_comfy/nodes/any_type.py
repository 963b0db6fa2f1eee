"""The type of an output or input that links with everything."""
from __future__ import annotations


class AnyType(str):
    """A type name that links with every other one.

    ComfyUI refuses a link where ``received != declared``; a str subclass that is never unequal passes, also beside a list (a combo) and
    whichever side it stands on. ``==`` stays that of the name.
    """

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__
