"""``distributed-comfy`` and ``python -m distributed_comfy``: the command line."""
from __future__ import annotations

import gc
import signal


def main() -> None:
    """Run a command.

    While the commands are imported Ctrl-C ends the process at once and without a traceback: there is nothing to be cleaned up yet.
    """
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nohup means it
    if handled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()  # what imports make stays; a look through all of it at every thousandth object costs a tenth of their time
    from distributed_comfy.cli.main import main as command_line

    gc.enable()
    if handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command_line()


if __name__ == "__main__":
    main()
