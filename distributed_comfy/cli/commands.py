"""What all commands share: the group that turns errors into exit statuses, JSON, settings, and the way Ctrl-C ends a run."""
from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from distributed_comfy.cli.output import Output
from distributed_comfy.config_file import nearest
from distributed_comfy.errors import DistributedComfyError, SettingInvalid
from distributed_comfy.lasting_imports import lasting_imports
from distributed_comfy.orchestrator.doctor.packages import refuse_foreign_packages
from distributed_comfy.settings import variable

log = logging.getLogger(__name__)

T = TypeVar("T")
_REPORTS_FOREIGN_PACKAGES = "doctor"
INTERRUPTED = 130
"""Exit status of a program that Ctrl-C ended."""
_ENDING_SIGNALS = [number for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if (number := getattr(signal, name, None))]


class Commands(click.Group):
    """Loads a command when it is called, and turns our errors into one line on standard error and their exit status.

    Args:
        lazy: name -> (what imports the command, one line for the overview).
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[Callable[[], click.Command], str]] | None = None, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order in which a newcomer needs them."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        if cmd_name not in self._lazy:
            return None
        if cmd_name != _REPORTS_FOREIGN_PACKAGES:
            refuse_foreign_packages()
        with lasting_imports():
            return self._lazy[cmd_name][0]()

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; a misspelt command is told the nearest one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = nearest(args[0], self._lazy)
            if not near or "did you mean" in error.message.lower():
                raise
            raise click.UsageError(f"{error.message} Did you mean {near!r}?", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._lazy.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        ctx.obj = Output()
        try:
            return super().invoke(ctx)
        except DistributedComfyError as error:
            from distributed_comfy.cli.failures import report_error

            ctx.exit(report_error(ctx.obj, error))

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Run a command and end the process with its exit status."""
        extra["standalone_mode"] = False
        try:
            status = super().main(args, prog_name or "distributed-comfy", *rest, **extra)
        except click.ClickException as error:
            error.show()
            status = error.exit_code
        except click.Abort:  # Ctrl-C where nothing had to be ended
            status = INTERRUPTED
        except BrokenPipeError:  # whoever read our output has had enough of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 1
        sys.exit(status if isinstance(status, int) else 0)


def _set_json(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Output).as_json = value


json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_set_json, help="Print the result as one line of JSON on standard output."
)
json_lines_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_set_json, help="Print each line as one line of JSON on standard output."
)


@contextmanager
def naming_options(**given: tuple[str, object]) -> Iterator[None]:
    """While the context lasts, an error in a setting that came from an option names the option and not the variable.

    Args:
        given: by field of `Settings`, the option and what it has; None where it was not used.
    """
    options = {variable(field): option for field, (option, value) in given.items() if value}
    try:
        yield
    except SettingInvalid as error:
        if error.name not in options:
            raise
        raise SettingInvalid(name=options[error.name], reason=error.reason) from error


def interruptibly(output: Output, work: Callable[[threading.Event], T], at_once: Callable[[], None] | None = None) -> T:
    """Run ``work`` in a thread; Ctrl-C (or SIGTERM) sets its event, a second one ends the process at once.

    An exception that breaks in anywhere could leave something running that was just being started; an event cannot.  Whoever is left
    behind by the second Ctrl-C ends by itself: workers with their standard input, private servers with their keeper.

    Args:
        output: says that the end has begun.
        work: what is done.
        at_once: called in the signal handler of the second Ctrl-C.
    """
    from distributed_comfy.orchestrator.background import Background

    background = Background(work, "run")

    def on_signal(number: int, frame: FrameType | None) -> None:
        if background.stopping:
            output.remarks.show_cursor(True)
            if at_once is not None:
                at_once()
            os._exit(INTERRUPTED)
        background.stop()

    with _handling_signals(on_signal):
        while not background.wait(0.1):
            if background.stopping:
                output.remark("ending, please wait (once more Ctrl-C: at once)", "yellow")
                background.wait()
        return background.result()


@contextmanager
def _handling_signals(on_signal: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may, and only it is interrupted
        return
    heeded = [number for number in _ENDING_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup means it
    before = {number: signal.signal(number, on_signal) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
