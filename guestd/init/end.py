"""The end: what is left is ended, everything is written, mounts are taken down in reverse, and then the power.

Each step is bounded, because each can hang: a process in the kernel, a disk, a server that a mount waits for. What may
hang is done by a child, and left to itself when its time is over.
"""

from __future__ import annotations

import os
import select
import time

from guestd.init import libc, mounts, reap, signals
from guestd.init.world import CONTAINER, MACHINE, PROCESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from guestd.init.console import Say
    from guestd.init.signals import Signals

#: For what serve has left, from SIGTERM to SIGKILL, and then until the kernel has taken it back.
TERM_SECONDS = 2.0
_KILL_SECONDS = 2.0
_SYNC_SECONDS = 10.0
_UNMOUNT_SECONDS = 10.0
_ROOT_SECONDS = 3.0

POWER_OFF, REBOOT, HALT = "power-off", "reboot", "halt"
_CALLS = {POWER_OFF: libc.RB_POWER_OFF, REBOOT: libc.RB_RESTART, HALT: libc.RB_HALT}


def end_processes(world: str, say: Say, noted: Signals) -> None:
    """SIGTERM to all that is left, SIGKILL two seconds later; at once when somebody asks to stop again."""
    if _gone(world):
        return
    say(f"SIGTERM to what is left{_named(world)}")
    _signal_all(world, signals.TERM)
    # What is stopped would hear it only when it is too late.
    _signal_all(world, signals.CONT)
    if _wait(world, noted, TERM_SECONDS, hurry=True):
        return
    say(f"SIGKILL to what is left{_named(world)}")
    _signal_all(world, signals.KILL)
    if not _wait(world, noted, _KILL_SECONDS, hurry=False):
        say(f"some of it cannot be killed{_named(world)}; going on")


def _wait(world: str, noted: Signals, seconds: float, *, hurry: bool) -> bool:
    """Until all are gone, and whether they are. Orphans come to us as their parents end, so all are reaped here."""
    poll = select.poll()
    poll.register(noted.wake, select.POLLIN)
    due = time.monotonic() + seconds
    while not _gone(world):
        now = time.monotonic()
        if now >= due:
            return False
        # Those whose parent is outside of a container do not tell us of their end.
        poll.poll(min((due - now) * 1000 + 1, 50))
        if any(number in signals.STOPS for number in noted.take()) and hurry:
            return False
    return True


def _gone(world: str) -> bool:
    """Reaps, and tells whether nothing is left."""
    try:
        for _ in reap.reap():
            pass
    except ChildProcessError:
        # No child at all. In a container there may be those that somebody has sent in from outside (docker exec).
        return world != CONTAINER or not _signal_all(world, 0)
    return False


def _signal_all(world: str, number: int) -> bool:
    """Was there anybody?"""
    if world == PROCESS:
        found = _descendants()
        for pid in found:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        return bool(found)
    assert os.getpid() == 1, "kill(-1) is PID 1's alone: elsewhere it would reach the whole machine"
    try:
        os.kill(-1, number)
    except ProcessLookupError:
        return False
    return True


def _processes() -> list[tuple[int, int, str]]:
    """(pid, parent, name) of all; kernel threads, which have no memory, left out."""
    found: list[tuple[int, int, str]] = []
    for word in os.listdir("/proc"):
        if not word.isdecimal():
            continue
        try:
            with open(f"/proc/{word}/stat", encoding="utf-8", errors="replace") as file:
                before, _, after = file.read().rpartition(") ")
        except OSError:
            continue
        words = after.split()
        # vsize; a zombie has none either, but for one that goes on without its first thread.
        if words[20] != "0" or words[17] != "1":
            found.append((int(word), int(words[1]), before.partition("(")[2]))
    return found


def _descendants() -> list[int]:
    parents = {pid: parent for pid, parent, _ in _processes()}
    ours = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        if not more:
            return sorted(ours - {os.getpid()})
        ours |= more


def _named(world: str) -> str:
    """The first few, for the console."""
    try:
        ours = set(_descendants()) if world == PROCESS else None
        found = [
            f"{name} ({pid})"
            for pid, _, name in _processes()
            if pid != os.getpid() and (ours is None or pid in ours)
        ]
    except OSError:
        return ""
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f": {', '.join(found[:5])}{more}" if found else ""


def end_storage(world: str, say: Say, noted: Signals, at_boot: frozenset[int]) -> None:
    """Everything to the disk. A container's own mounts, and on a machine all of them, are taken down in reverse."""
    if world == PROCESS:
        return
    if world == CONTAINER:
        if any(each.id not in at_boot for each in mounts.table()):
            _bounded("unmounting", _UNMOUNT_SECONDS, lambda: mounts.unmount_all(at_boot, say), say, noted)
        return
    _bounded("sync", _SYNC_SECONDS, os.sync, say, noted)
    _bounded("unmounting", _UNMOUNT_SECONDS, lambda: mounts.unmount_all(frozenset(), say), say, noted)
    _bounded("the root", _ROOT_SECONDS, lambda: mounts.root_read_only(say), say, noted)


def _bounded(what: str, seconds: float, act: Callable[[], object], say: Say, noted: Signals) -> None:
    """Done by a child, with a limit of time."""
    begun = time.monotonic()
    try:
        pid = os.fork()  # noqa: TID251  one thread, few pages
    except OSError as error:
        say(f"{what}: no process for it ({error.strerror}); doing it without a limit")
        act()
        return
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        except OSError as error:
            say(f"{what}: {error.strerror}")
        finally:
            os._exit(status)
    poll = select.poll()
    poll.register(noted.wake, select.POLLIN)
    due = begun + seconds
    while (now := time.monotonic()) < due:
        try:
            if any(ended.pid == pid for ended in reap.reap()):
                took = (time.monotonic() - begun) * 1000
                if took >= 100:
                    say(f"{what} took {took:.0f} ms")
                return
        except ChildProcessError:
            return
        poll.poll((due - now) * 1000 + 1)
        noted.take()
    say(f"{what} has not ended within {seconds:.0f} s; going on without it")


def leave(world: str, how: str, status: int, say: Say) -> int:
    """The last line. A machine's power goes and this does not return; else the exit status."""
    if world == MACHINE:
        say(how)
        _switch_off(how, say)
    say(f"exit {status}")
    return status


def _switch_off(how: str, say: Say) -> NoReturn:
    assert os.getpid() == 1, "only PID 1 of a machine ends the machine"
    for each in (how, HALT):
        try:
            libc.reboot(_CALLS[each])
        except OSError as error:
            say(f"{each}: {error.strerror}")
    while True:
        # Returning would be a panic. There may still be somebody to reap, and a hypervisor to switch us off.
        time.sleep(60)
