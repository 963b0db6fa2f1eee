"""The patterns of the seeded generator, by name; they can be listed without torch, which draws them."""
from __future__ import annotations

STYLES = ("ink", "rosette", "silk", "agate")
"""``auto`` lets the seed choose."""
