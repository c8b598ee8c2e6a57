"""One quiet line at the bottom of somebody else's screen. Pure.

It is drawn over what is there, in reverse, and the cursor stays where it was. What was under it is not known here:
who takes the line away has the screen drawn again.
"""

from __future__ import annotations

from guestd.ctl.modes import CANCEL

#: Somebody else took the ownership while there was no connection.
TAKEN = "somebody else has taken this shell over meanwhile: the size is theirs, you type beside them"


def draw(text: str, columns: int, rows: int) -> bytes:
    """The line. Nothing is scrolled, whatever the size."""
    if columns < 1 or rows < 1:
        return b""
    shown = f" {text} "[:columns].ljust(columns)
    # The saved state has the attributes, the letters and the origin too. Wrapping is off for the last column.
    begin = CANCEL + b"\x1b7\x1b[?6l\x1b(B\x0f\x1b[?7l\x1b[%d;1H\x1b[0;7m" % rows
    return begin + shown.encode("ascii", "replace") + b"\x1b[0m\x1b[?7h\x1b8"


def erase(rows: int) -> bytes:
    """An empty line in its place, where the screen is not drawn again."""
    return b"\x1b7\x1b[?6l\x1b[%d;1H\x1b[0m\x1b[2K\x1b8" % rows if rows > 0 else b""


def lost(seconds: float, leaving: str | None, kept: int, *, watching: bool) -> str:
    """The connection is lost, and it will be tried again in so many seconds."""
    parts = ["connection lost", "connecting again now" if seconds < 0.5 else f"next try in {seconds:.0f} s"]
    if leaving:
        parts.append(f"{leaving} leaves")
    if kept:
        parts.append(f"{kept} key{'s' if kept > 1 else ''} kept")
    elif not watching:
        parts.append("what you type is kept")
    return "; ".join(parts)


def blocked(waiting: int) -> str:
    """The program does not read."""
    return f"the program does not read what is typed; {waiting} bytes wait for it"
