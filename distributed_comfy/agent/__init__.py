"""The agent of a host: finds its devices, runs a worker on each, starts again what ends, and obeys the orders that come for the host.

`Agent` is the whole of it as an object; `agent.up` is the shell that a process puts round it.  No torch, no ComfyUI.
"""
