"""``distributed-comfy doctor``: each module looks at one thing and gives findings; `examination` runs them all."""
