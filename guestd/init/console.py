"""What PID 1 says: short lines, in order, each with the milliseconds since it began.

A console may stop taking bytes: a serial line that nobody reads, a container's log that is full. PID 1 must not wait
for it, so a line that it would have to wait for is not said; how many were not is told by the next one that is.
"""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Say = Callable[[str], None]

_STDERR = 2
#: As much as a pipe that is ready takes without making anybody wait (PIPE_BUF is 4096), with room for the prefix.
_LINE_MAX = 1000


class Console:
    def __init__(self, since: float) -> None:
        self.since = since
        self._fd = _STDERR
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self.unsaid = 0

    def move(self, path: str) -> None:
        """Speak there from now on, where it can be opened. Never as a controlling terminal: its ^C would be ours."""
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self.say(f"no {path}: {error.strerror}")
            return
        self._poll.unregister(self._fd)
        self._fd = fd
        self._poll.register(fd, select.POLLOUT)

    def say(self, text: str) -> None:
        if self.unsaid:
            text = f"({self.unsaid} lines before this one found no room) {text}"
        # What others have written (a status, a name) must not make two lines of one, or move a terminal's cursor.
        clean = "".join(each if each.isprintable() else "?" for each in text[:_LINE_MAX])
        line = f"guestd init: [{(time.monotonic() - self.since) * 1000:7.0f} ms] {clean}\n"
        try:
            ready = self._poll.poll(0)
            if ready and ready[0][1] & select.POLLOUT:
                os.write(self._fd, line.encode("utf-8", "backslashreplace"))
                self.unsaid = 0
                return
        except OSError:
            # Nobody listens any more: there is nowhere to say that either.
            pass
        self.unsaid += 1

    def fail(self, what: str, error: BaseException) -> None:
        """A mistake of our own, with where it was made."""
        # Late: it is never needed.
        import traceback

        self.say(f"{what}: {error!r}")
        for line in traceback.format_exception(error)[-4:-1]:
            self.say(" ".join(line.split()))
