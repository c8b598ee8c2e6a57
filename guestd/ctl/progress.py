"""A line that says how far a copy has come. On a terminal, and nowhere else."""

from __future__ import annotations

import os
import sys
import time

from guestd.ctl.failures import printable

_EVERY = 0.1
_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
#: The rate is that of about the last so many seconds.
_MEMORY = 3.0


def size(number: float) -> str:
    """`1.4 GB`."""
    for unit in _UNITS:
        if number < 999.5 or unit == _UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 99.95 else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """`0:07`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def line(name: str, done: int, total: int | None, rate: float, columns: int) -> str:
    """What the line says, in at most so many columns."""
    shown = size(done)
    if total:
        share = min(1.0, done / total)
        left = duration((total - done) / rate) if rate > 0 and done < total else "-:--"
        right = f"{100 * share:3.0f} %  {shown} of {size(total)}  {size(rate)}/s  {left}"
    else:
        share, right = None, f"{shown}  {size(rate)}/s"
    room = columns - len(right) - 2
    if room < 8:
        return right[: max(0, columns)]
    text = printable(name)
    label = text if len(text) <= room // 2 else "…" + text[-(room // 2 - 1) :]
    if share is None:
        return f"{label}  {right}"
    width = min(30, room - len(label) - 4)
    if width < 5:
        return f"{label}  {right}"
    full = round(share * width)
    return f"{label}  [{'#' * full}{'.' * (width - full)}]  {right}"


class Progress:
    """See the module. `moved` is told of bytes; it draws now and then."""

    def __init__(self, *, wanted: bool) -> None:
        self._shown = wanted and sys.stderr.isatty()
        self._name = ""
        self._total: int | None = None
        self._done = 0
        self._rate = 0.0
        self._since = self._drawn = time.monotonic()
        self._fresh = 0

    def begin(self, name: str, total: int | None) -> None:
        """Of something else from now on."""
        self._name, self._total, self._done, self._fresh, self._rate = name, total, 0, 0, 0.0
        self._since = time.monotonic()

    def moved(self, count: int) -> None:
        self._done += count
        self._fresh += count
        now = time.monotonic()
        if not self._shown or now - self._drawn < _EVERY:
            return
        passed = max(now - self._since, 1e-6)
        share = min(1.0, passed / _MEMORY)
        self._rate = (
            self._fresh / passed
            if not self._rate
            else (1 - share) * self._rate + share * self._fresh / passed
        )
        self._since, self._fresh, self._drawn = now, 0, now
        self._draw(line(self._name, self._done, self._total, self._rate, _columns() - 1))

    def clear(self) -> None:
        """For other words in its place, or at the end."""
        if self._shown:
            self._draw("")

    def _draw(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _columns() -> int:
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80
