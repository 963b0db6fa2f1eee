"""A stand-in for cloudflared: prints what that prints, and notes with which arguments it ran."""
from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

WORDS = r"""
2026-01-11T19:57:55Z INF Thank you for trying Cloudflare Tunnel. (...) https://developers.cloudflare.com/cloudflare-one/connections
2026-01-11T19:57:55Z INF Requesting new quick Tunnel on trycloudflare.com...
2026-01-11T19:57:58Z INF +--------------------------------------------------------------------------------------------+
2026-01-11T19:57:58Z INF |  Your quick Tunnel has been created! Visit it at (it may take some time to be reachable):  |
2026-01-11T19:57:58Z INF |  https://four-dashed-word-url.trycloudflare.com                                            |
2026-01-11T19:57:58Z INF +--------------------------------------------------------------------------------------------+
2026-01-11T19:57:58Z INF Registered tunnel connection connIndex=0
"""
FAILS = """
2026-01-11T19:57:55Z INF Requesting new quick Tunnel on trycloudflare.com...
failed to request quick Tunnel: Post "https://api.trycloudflare.com/tunnel": dial tcp: lookup api.trycloudflare.com: no such host
"""


def stand_in(folder: Path, words: str, *, lives: bool) -> Path:
    """A program that prints as cloudflared does, and notes its process and its arguments."""
    program = folder / "cloudflared"
    lines = [
        f"#!{sys.executable}", "import os, sys, time", f"open({str(folder / 'ran')!r}, 'w').write(f'{{os.getpid()}} {{sys.argv[1:]}}')",
        f"sys.stderr.write({words!r})", "sys.stderr.flush()", "time.sleep(60)" if lives else "sys.exit(1)",
    ]  # fmt: skip
    program.write_text("\n".join(lines))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
