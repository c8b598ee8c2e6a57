"""Was it the kernel that killed a process for memory? Said only where the kernel says so.

A job's own cgroup counts its kills. Without one, the kernel's log names the victim: by pid in the initial pid
namespace; within another namespace, where pids differ, by name and user and the moment. Never guessed from
SIGKILL alone.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_KMSG = "/dev/kmsg"
_RECORD_MAX = 8192
#: PROC_PID_INIT_INO: what /proc/self/ns/pid is in the initial namespace.
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
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
    exact = os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE
    try:
        fd = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        while True:
            try:
                record = os.read(fd, _RECORD_MAX)
            except BlockingIOError:
                return False
            except BrokenPipeError:
                continue  # records were overwritten while this read; the next one is still there
            if _names(record, victim, since_mono, exact=exact):
                return True
    finally:
        os.close(fd)


def _names(record: bytes, victim: Victim, since_mono: float, *, exact: bool) -> bool:
    head, _, text = record.partition(b";")
    found = _KILLED.search(text)
    if found is None:
        return False
    # «priority,sequence,microseconds since boot,…». The log's clock and CLOCK_MONOTONIC agree but for some
    # milliseconds.
    logged = int(head.split(b",")[2]) / 1e6
    if logged < since_mono - 0.1:
        return False
    pid, name, uid = int(found[1]), found[2].decode("utf-8", "replace"), int(found[3])
    if exact:
        return pid == victim.pid
    return (name, uid) == (victim.name, victim.uid)
