"""``distributed-comfy`` and ``python -m distributed_comfy``: the command line."""
from __future__ import annotations

import signal

from distributed_comfy.lasting_imports import end_without_collection, lasting_imports


def main() -> None:
    """Run a command.

    While the commands are imported Ctrl-C ends the process at once and without a traceback: there is nothing to be cleaned up yet.
    """
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nohup means it
    if handled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_without_collection()
    with lasting_imports():
        from distributed_comfy.cli.main import main as command_line
    if handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command_line()


if __name__ == "__main__":
    main()
