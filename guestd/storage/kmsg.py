"""The kernel's last words: what it logs from some moment on."""

from __future__ import annotations

import os
from contextlib import suppress

from guestd.process.kernel_log import open_kernel_log

_MOST = 8


class KernelLog:
    """What the kernel logs after this was made. Where nobody may read that, nothing."""

    def __init__(self) -> None:
        self._fd = -1
        with suppress(OSError):
            self._fd = open_kernel_log()

    def lines(self) -> list[str]:
        """The newest of them, without waiting."""
        found: list[str] = []
        while self._fd >= 0:
            try:
                record = os.read(self._fd, 8192)
            except BrokenPipeError:
                continue  # overwritten before it was read
            except OSError:
                break
            _, _, text = record.decode("utf-8", "replace").partition(";")
            found.append(text.split("\n", 1)[0])
        return found[-_MOST:]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
