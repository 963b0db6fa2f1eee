"""Every GPU you own works on one ComfyUI prompt: durable queues, exact results, nothing lost."""
