"""Processor time and memory of the session and of each job, as psutil and the cgroups tell. Looked at from here, so
that a machine with many processes costs serve nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MICRO = 1e-6


class Usage(NamedTuple):
    """Seconds and bytes."""

    cpu: float
    memory: int


def session_usage(serve: int) -> Usage:
    """Of serve and all below it. Children that have ended count with whoever waited for them."""
    try:
        root = psutil.Process(serve)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return Usage(0.0, 0)
    return _sum(family)


def job_usage(pid: int | None, group: str | None) -> Usage | None:
    """Of one job: its cgroup's where it has one, else its tree's."""
    if group is not None:
        found = _group_usage(group)
        if found is not None:
            return found
    if pid is None:
        return None
    try:
        root = psutil.Process(pid)
        return _sum([root, *root.children(recursive=True)])
    except psutil.Error:
        return None


def _sum(processes: Iterable[psutil.Process]) -> Usage:
    cpu, memory = 0.0, 0
    for each in processes:
        with suppress(psutil.Error), each.oneshot():
            times = each.cpu_times()
            cpu += times.user + times.system + times.children_user + times.children_system
            memory += each.memory_info().rss
    return Usage(cpu, memory)


def _group_usage(group: str) -> Usage | None:
    stat = _read(os.path.join(group, "cpu.stat"))
    if stat is None:
        return None
    cpu = _fields(stat).get("usage_usec", 0) * _MICRO
    current = _read(os.path.join(group, "memory.current"))
    if current is not None:
        return Usage(cpu, int(current))
    # Without the memory controller its processes are asked.
    memory = 0
    for pid in (_read(os.path.join(group, "cgroup.procs")) or "").split():
        with suppress(psutil.Error):
            memory += psutil.Process(int(pid)).memory_info().rss
    return Usage(cpu, memory)


def _fields(text: str) -> Mapping[str, int]:
    return {name: int(value) for name, _, value in (line.partition(" ") for line in text.splitlines())}


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return None
