"""Runs a program until it ends or standard input closes: ``python tunnel_keeper.py PROGRAM ARGUMENT...``.

A program that does not watch whoever started it would outlive a killed one; this process watches for it, and ends with its exit
status, as a shell shows it: 128 + the signal's number where one ended it.
"""
from __future__ import annotations

import os
import subprocess
import sys
import threading

_PATIENCE_S = 5.0


def main(command: list[str]) -> int:
    """Run the command; its output goes to standard output."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stdout, stderr=sys.stdout)
    threading.Thread(target=_end_with_stdin, args=(process,), daemon=True).start()
    status = process.wait()
    return status if status >= 0 else 128 - status


def _end_with_stdin(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):  # not `sys.stdin`: Python cannot end while a thread waits with its lock
        pass
    process.terminate()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
