"""What a master does without ComfyUI: servers, workers of its own, one job from prompt to files."""
