"""Was it the kernel that killed a process for memory? Said only where the kernel says so.

A job's own cgroup counts its kills. Without one, the kernel's log names the victim: by pid in the initial pid
namespace; within another namespace, where pids differ, by name and user and the moment, and then each record
speaks of one victim only. Never guessed from SIGKILL alone.
"""

from __future__ import annotations

import os
import re
import threading
from typing import NamedTuple

_RECORD_MAX = 8192
#: PROC_PID_INIT_INO: what /proc/self/ns/pid is in the initial namespace.
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
#: The records whose victims were found by name. They are few: the kernel's log is short, and this is rare.
_told: set[int] = set()
_telling = threading.Lock()
_KILLED = re.compile(rb"Killed process (\d+) \((.*)\) .*UID:(\d+)", re.ASCII)


class Victim(NamedTuple):
    """Who ended with SIGKILL: read while it was still a zombie."""

    pid: int
    name: str
    uid: int


def read_victim(pid: int) -> Victim:
    """Of a zombie that has not been waited for."""
    with open(f"/proc/{pid}/status", "rb") as file:
        fields = dict(line.split(b":\t", 1) for line in file.read().splitlines() if b":\t" in line)
    return Victim(pid, fields[b"Name"].decode("utf-8", "replace"), int(fields[b"Uid"].split()[0]))


def killed_for_memory(victim: Victim, since_mono: float) -> bool:
    """Has the kernel logged, since then, that it killed this process for memory?"""
    # Late, and there already: what is imported after READY has it.
    from guestd.process.kernel_log import open_kernel_log

    exact = os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE
    named: list[int] = []
    try:
        fd = open_kernel_log(from_start=True)
    except OSError:
        return False
    try:
        while True:
            try:
                record = os.read(fd, _RECORD_MAX)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # records were overwritten while this read; the next one is still there
            if (sequence := _names(record, victim, since_mono, exact=exact)) is not None:
                named.append(sequence)
    finally:
        os.close(fd)
    if exact:
        return bool(named)
    with _telling:
        for sequence in reversed(named):
            if sequence not in _told:
                _told.add(sequence)
                return True
    return False


def _names(record: bytes, victim: Victim, since_mono: float, *, exact: bool) -> int | None:
    """The number of the record, if it says that."""
    head, _, text = record.partition(b";")
    found = _KILLED.search(text)
    if found is None:
        return None
    # «priority,sequence,microseconds since boot,…». The log's clock and CLOCK_MONOTONIC agree but for some
    # milliseconds.
    _, sequence, microseconds = (int(number) for number in head.split(b",")[:3])
    if microseconds / 1e6 < since_mono - 0.1:
        return None
    pid, name, uid = int(found[1]), found[2].decode("utf-8", "replace"), int(found[3])
    is_it = pid == victim.pid if exact else (name, uid) == (victim.name, victim.uid)
    return sequence if is_it else None
