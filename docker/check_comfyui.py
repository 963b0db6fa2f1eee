"""Health check of the master: ComfyUI answers its own queue endpoint, so its server and its prompt queue are up.  Standard library only."""
from __future__ import annotations

import json
import sys
import urllib.request

URL = "http://127.0.0.1:8188/prompt"
TIMEOUT_S = 5.0


def main() -> int:
    """Exit status 0 where the answer is what ComfyUI answers."""
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_S) as reply:
            answer = json.load(reply)
        remaining = answer["exec_info"]["queue_remaining"]
    except (OSError, ValueError, KeyError) as error:
        sys.stdout.write(f"ComfyUI does not answer on {URL}: {error}\n")
        return 1
    sys.stdout.write(f"ComfyUI answers, {remaining} prompts in its queue\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
