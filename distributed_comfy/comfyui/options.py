"""What the user switches in ComfyUI: kept in one JSON file beside workers.json, written whole, read at the start and after a change."""
from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from distributed_comfy.config_file import nearest
from distributed_comfy.errors import OptionWrong
from distributed_comfy.settings import Settings

log = logging.getLogger(__name__)

FILE_NAME = "comfyui.json"


class Options(BaseModel):
    """The options; each has a default that changes nothing of what ComfyUI does alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    participate: bool = True
    """This ComfyUI takes items of its own jobs too; otherwise it only orchestrates."""
    auto_launch: bool = False
    """The workers of this host start with ComfyUI; otherwise they wait until they are asked for. ``auto_launch`` in workers.json is for
    ``up`` alone."""
    ordinary: bool | None = None
    """Prompts without distributed nodes may run on any GPU; null: not asked yet."""
    debug: bool = False
    """Detailed logs in the browser's console."""
    stop_workers: bool = True
    """Workers that this ComfyUI started end with it, also when it is killed."""


class OptionsFile:
    """The options of this user and host.

    Args:
        path: of the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._changing = threading.RLock()
        self._seen = self._stamp()
        self._current = self._read()

    @property
    def current(self) -> Options:
        """As they are now: another process, such as `distributed-comfy config import`, may have written the file."""
        stamp = self._stamp()
        if stamp != self._seen:
            with self._changing:
                self._seen, self._current = stamp, self._read()
        return self._current

    def change(self, name: str, value: Any) -> Options:
        """Change one option, in the file too.

        Raises:
            OptionWrong: there is no such option, it cannot have this value, or the file cannot be written.
        """
        if name not in Options.model_fields:
            close = nearest(name, set(Options.model_fields))
            told = f"did you mean {close}?" if close else f"there are {', '.join(Options.model_fields)}"
            raise OptionWrong(name=name, reason=f"is no option; {told}")
        with self._changing:
            try:
                changed = Options.model_validate({**self.current.model_dump(), name: value})
            except ValidationError as error:
                raise OptionWrong(name=name, reason=f"cannot be {value!r}; it is true or false") from error
            self._write(changed)
            self._seen, self._current = self._stamp(), changed
        log.info("option %s is %s now", name, json.dumps(value))
        return changed

    def _stamp(self) -> tuple[int, int, int] | None:
        """Differs where the file was written; None where there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> Options:
        """What the file says; where it cannot be used, the defaults, and why in the log."""
        try:
            return Options.model_validate(json.loads(self.path.read_text(encoding="utf-8-sig")))
        except FileNotFoundError:
            return Options()
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except (OSError, ValueError) as error:
            reason = str(error)
        log.warning("the options in %s are not used, but their defaults: %s; mend the file or remove it", self.path, reason)
        return Options()

    def _write(self, options: Options) -> None:
        partial = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(options.model_dump_json(indent=2) + "\n", encoding="utf-8")
            os.replace(partial, self.path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise OptionWrong(name=str(self.path), reason=f"cannot be written: {error.strerror or error}") from error


def options_file(settings: Settings) -> OptionsFile:
    """The options of this user."""
    return OptionsFile(settings.workers_path.expanduser().absolute().with_name(FILE_NAME))
