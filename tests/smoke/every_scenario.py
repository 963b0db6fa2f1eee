"""Imports all modules with scenarios, in the order of the table."""
from tests.smoke import process_faults, server_faults, network_faults, engine_faults, host_faults  # noqa: F401, I001 - their order counts
from tests.comfyui import comfyui_faults  # noqa: F401
