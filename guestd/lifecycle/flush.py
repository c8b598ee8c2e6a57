"""What is written reaches stable storage, or it is said what does not, and why.

Every file system that keeps anything is flushed by itself (syncfs), in a process of its own: one that does not answer
holds up neither the others nor this one.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from guestd.errors import GuestdError
from guestd.lifecycle import flusher
from guestd.lifecycle.own import kept, own_request
from guestd.wire.result import EndedBy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guestd.config import Settings
    from guestd.session.job import Job
    from guestd.session.jobs import Jobs

JOB_ID = "stop-flush"
#: Nothing of them is meant to outlive the machine.
VOLATILE = {"tmpfs", "ramfs"}
_VIRTUAL = VOLATILE | {
    "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs",
    "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "rootfs", "rpc_pipefs", "securityfs", "selinuxfs",
    "sysfs", "tracefs", "squashfs", "erofs", "iso9660",
}  # fmt: skip


class FileSystem(NamedTuple):
    """A mounted one, by one of the places where it is."""

    path: str
    type: str
    source: str
    device: str
    read_only: bool


def mounted(lines: Iterable[str]) -> dict[str, FileSystem]:
    """By path, as /proc/self/mountinfo has them; what is mounted over is not there."""
    found: dict[str, FileSystem] = {}
    for line in lines:
        before, _, after = line.rstrip("\n").partition(" - ")
        fields, more = before.split(" "), after.split(" ")
        if len(fields) >= 6 and len(more) >= 3:
            path = _unescaped(fields[4])
            read_only = "ro" in fields[5].split(",") or "ro" in more[2].split(",")
            found[path] = FileSystem(path, more[0], _unescaped(more[1]), fields[2], read_only)
    return found


def worth_flushing(table: dict[str, FileSystem]) -> list[FileSystem]:
    """One place for each that keeps anything."""
    found: dict[str, FileSystem] = {}
    for each in sorted(table.values(), key=lambda each: len(each.path)):
        if each.type not in _VIRTUAL and not each.read_only:
            found.setdefault(each.device, each)
    return list(found.values())


def file_system_of(path: str, table: dict[str, FileSystem]) -> FileSystem | None:
    """Where a path is, by its text alone: to look at it may take for ever."""
    path = os.path.normpath(path)
    while path not in table:
        if path == "/":
            return None
        path = os.path.dirname(path)
    return table[path]


async def flush(jobs: Jobs, settings: Settings, found: list[dict[str, Any]]) -> None:
    """Flush all of them. `found` gets an entry for each, which tells what became of it also when this is cancelled."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        table = mounted(file)
    wanted = worth_flushing(table)
    found += [_told(each) for each in wanted]
    home = file_system_of(settings.workspace, table)
    if home is not None and home.type in VOLATILE:
        found.append(
            _told(home) | {"why": f"it holds {settings.workspace} and is in memory: nothing of it is kept"}
        )
    if not wanted:
        return
    argv = (sys.executable, "-I", "-S", flusher.__file__, *(each.path for each in wanted))
    # guestd's own user, whoever commands run as.
    request = own_request(settings, argv, user=os.geteuid(), cwd="/", grace=0.0)
    try:
        job = jobs.start_own(JOB_ID, request)
    except GuestdError as error:
        for fields in found[: len(wanted)]:
            fields["why"] = error.message
        return
    with kept(job):
        try:
            await job.ended.wait()
        finally:
            _read(job, found[: len(wanted)])
            # Stuck in the kernel, it may not notice; nobody waits for it.
            job.end(EndedBy.TIMEOUT, grace=0)


def _told(each: FileSystem) -> dict[str, Any]:
    return {
        "path": each.path,
        "type": each.type,
        "source": each.source,
        "synced": False,
        "took": None,
        "why": None,
    }


def _read(job: Job, found: list[dict[str, Any]]) -> None:
    lines = b""
    for recording in job.recordings[:1]:
        recording.drain()
        lines = bytes(recording.read(recording.start, recording.capacity).data)
    for line in lines.splitlines():
        with suppress(ValueError, IndexError):  # cut short in its middle: not done then
            number, error, took = line.split()
            fields = found[int(number)]
            fields.update(synced=error == b"0", took=float(took), why=None)
            if error != b"0":
                fields["why"] = os.strerror(int(error)) if int(error) > 0 else "it cannot be opened"
    result = job.result
    for fields in found:
        if not fields["synced"] and fields["why"] is None:
            if result is None:
                fields["why"] = "it did not answer in time"
            else:
                fields["why"] = result.message or "whoever was to flush it was ended before that"


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
