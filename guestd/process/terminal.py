"""A terminal: the kernel's pair of ends, its size, and who is in its foreground.

Both ends stay here for as long as the program lives. A program that closes all of its own and opens /dev/tty
again a moment later would otherwise look like the end of the terminal, which only the program's exit is.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Generator

# Not in Python's termios. The numbers are those of x86, arm and riscv.
_TIOCSPTLCK, _TIOCGPTPEER, _TIOCSIG = 0x40045431, 0x5441, 0x40045436
_IUTF8 = 0x4000
_IFLAG, _LFLAG, _CC = 0, 3, 6
_WINSIZE = struct.Struct("HHHH")
_PTMX = "/dev/ptmx"

#: What the kernel's numbers can hold.
SIZE_MAX = 65535


class Size(NamedTuple):
    """A terminal's size in characters, and in pixels where somebody knows them."""

    columns: int
    rows: int
    width: int = 0
    height: int = 0


#: Where nobody says.
USUAL_SIZE = Size(80, 24)
UNKNOWN_SIZE = Size(0, 0)


class Pty(NamedTuple):
    """`master` is this side's, `slave` is the program's. Whoever opened it closes both."""

    master: int
    slave: int


def open_pty(size: Size, uid: int) -> Pty:
    """A terminal of that size, whose device belongs to that user. Raises OSError.

    The other end comes from the master itself, so it is right whichever devpts this process sees, or none.
    """
    master = os.open(_PTMX, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, b"\0\0\0\0")
        slave = open_slave(master)
    except BaseException:
        os.close(master)
        raise
    try:
        modes = termios.tcgetattr(slave)
        # Erasing takes a whole character then, in programs that leave lines to the kernel.
        modes[_IFLAG] |= _IUTF8
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        set_size(master, size)
        if os.fstat(slave).st_uid != uid:
            os.fchown(slave, uid, -1)
    except BaseException:
        os.close(slave)
        os.close(master)
        raise
    return Pty(master, slave)


def open_slave(master: int) -> int:
    """The program's end of that terminal."""
    return fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def set_size(fd: int, size: Size) -> None:
    """Set it; the programs in the foreground get SIGWINCH if it is another one."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, _WINSIZE.pack(size.rows, size.columns, size.width, size.height))


def foreground_of(fd: int) -> int | None:
    """The process group in the foreground."""
    group = bytearray(4)
    try:
        fcntl.ioctl(fd, termios.TIOCGPGRP, group)
    except OSError:
        return None
    number = int.from_bytes(group, "little")
    return number or None


def interrupting(fd: int) -> dict[int, int]:
    """The characters that are signals now, and which: Ctrl+C and its like, where the program left them that."""
    try:
        modes = termios.tcgetattr(fd)
    except termios.error:
        return {}
    if not modes[_LFLAG] & termios.ISIG:
        return {}
    found: dict[int, int] = {}
    for index, number in ((termios.VINTR, 2), (termios.VQUIT, 3), (termios.VSUSP, 20)):
        character = modes[_CC][index]
        if isinstance(character, bytes) and character != b"\0":
            found[character[0]] = number
    return found


def end_of_file(fd: int) -> bytes:
    """The character that means the end of the input, now."""
    with suppress(termios.error):
        character = termios.tcgetattr(fd)[_CC][termios.VEOF]
        if isinstance(character, bytes) and character != b"\0":
            return character
    return b"\x04"


def unread(fd: int) -> int:
    """How much of what was typed waits at the program's end: behind that, no key is looked at."""
    count = bytearray(4)
    with suppress(OSError), _programs_end(fd) as end:
        fcntl.ioctl(end, termios.FIONREAD, count)
    return int.from_bytes(count, "little")


def keeps_typed(fd: int) -> bool:
    """Does a key that is a signal leave alone what was typed before it?"""
    try:
        return bool(termios.tcgetattr(fd)[_LFLAG] & termios.NOFLSH)
    except termios.error:
        return False


def drop_typed(fd: int) -> None:
    """Forget what was typed and not read: what is on its way first, then what has arrived."""
    with suppress(OSError, termios.error), _programs_end(fd) as end:
        termios.tcflush(fd, termios.TCOFLUSH)
        termios.tcflush(end, termios.TCIFLUSH)


def interrupt(fd: int, number: int) -> None:
    """Send the programs in the foreground a signal, as a key would."""
    with suppress(OSError):  # it has hung up
        fcntl.ioctl(fd, _TIOCSIG, number)


@contextmanager
def _programs_end(fd: int) -> Generator[int]:
    end = fcntl.ioctl(fd, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        yield end
    finally:
        os.close(end)
