"""What exec and attach print: the job's own bytes, or JSON lines that carry them.

All of it goes through outlets, because a slow reader of ours is to slow the job and nothing else.
"""

from __future__ import annotations

import base64
import json as json_text
from typing import TYPE_CHECKING, Any

from guestd.ctl.failures import printable
from guestd.ctl.streams import Outlet
from guestd.errors import GuestdError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.client import Gap, Output

_STDOUT, _STDERR = "stdout", "stderr"


class OutputFailed(GuestdError):
    """Our own stdout or stderr takes no more."""

    code = "output"


class Printer:
    """Prints one job. With `json`, everything is a line on stdout; without, only the job's bytes are."""

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self._outlets = {_STDOUT: Outlet(1), _STDERR: Outlet(2)}

    async def output(self, event: Output) -> None:
        """Bytes of the job."""
        if not self._json:
            await self._write(event.stream if event.stream in self._outlets else _STDOUT, event.data)
            return
        fields: dict[str, Any] = {"event": "output", "stream": event.stream, "offset": event.offset}
        try:
            fields["text"] = event.data.decode()
        except UnicodeDecodeError:
            fields["data"] = base64.b64encode(event.data).decode()
        await self.note(fields)

    async def gap(self, event: Gap) -> None:
        """Bytes that are lost. This is never kept from anybody."""
        await self.note({"event": "gap", "stream": event.stream, "from": event.start, "to": event.end})
        await self.say(
            f"{event.size} bytes of {event.stream} are lost (offset {event.start} to {event.end}): "
            "the guest keeps only the newest; exec --tape SIZE keeps more, --spool all"
        )

    async def note(self, fields: Mapping[str, Any]) -> None:
        """Something for programs; people are not told."""
        if self._json:
            await self._write(_STDOUT, json_text.dumps(fields, default=str).encode() + b"\n")

    async def say(self, text: str) -> None:
        """Something for people; programs are told by a note."""
        if not self._json:
            await self._write(_STDERR, f"guestctl: {printable(text)}\n".encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        for outlet in self._outlets.values():
            outlet.close()

    async def _write(self, name: str, data: bytes) -> None:
        try:
            await self._outlets[name].write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(f"cannot write to {name}: {error.strerror}") from error
