"""Tiles of an image: where they lie, what waits for what, how they are cut and blended.  Pure: numpy and nothing of ours."""
