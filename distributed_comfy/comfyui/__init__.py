"""The node pack: what makes the user's own running ComfyUI the master of the cluster.

`door.load` is all that ComfyUI's custom_nodes folder calls.  Nothing here imports torch or ComfyUI when it is loaded; ComfyUI's modules
come through `host` only.
"""
