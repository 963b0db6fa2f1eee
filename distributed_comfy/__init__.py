"""Every GPU you own works on one ComfyUI prompt: durable queues, exact results, nothing lost."""

__version__ = "0.1.0"
"""This release; `setup.cfg` takes it from here."""
