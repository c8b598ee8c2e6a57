"""Run as a program of its own: has the file systems at the given paths written to their disks, each by a thread, and
prints a line for each as it is done: its place in the list, the error or 0, the seconds it took.

A process, because a system call that waits for a dead disk or server cannot be ended; guestd can.
Standard library only, and by its path: nothing of guestd is imported.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import sys
import time


def main(paths: list[str]) -> None:
    """Ends when all are done."""
    libc = ctypes.CDLL(None, use_errno=True)
    doors = [_thread.allocate_lock() for _ in paths]

    def flush(number: int) -> None:
        begun = time.monotonic()
        error = 0
        try:
            fd = os.open(paths[number], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if libc.syncfs(fd):
                error = ctypes.get_errno()
        except OSError as failure:
            error = failure.errno or -1
        os.write(1, f"{number} {error} {time.monotonic() - begun:.6f}\n".encode())
        doors[number].release()

    for number, door in enumerate(doors):
        door.acquire()
        _thread.start_new_thread(flush, (number,))
    for door in doors:
        door.acquire()


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)
