"""Run as a program of its own: does one thing to the file systems, as the variable REQUEST says in JSON, and prints
what came of it as one line of JSON; `look` prints a line for each path as its answer comes.

A process, because a system call that waits for a dead disk or server cannot be ended; guestd gives it up at the time
that it has for it, and goes on. What is not attached by then never will be: a mount becomes visible in the last step.

Only pure modules of guestd, and those made for this program, are imported.
"""

from __future__ import annotations

import _thread
import errno
import json
import os
import socket
import stat
import sys
import time
from typing import Any

# An interpreter that looks nowhere but in its own library has to be told where guestd is.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from guestd.storage import REQUEST, devices, directory, kernel, mountinfo, superblock
from guestd.storage.kmsg import KernelLog

_HOLDERS = 5
_SYSTEM = "/proc/self/mountinfo"


class _Failed(Exception):
    """In words. `stage`: `where` cannot be mended by trying again, `what` and `mount` perhaps."""

    def __init__(self, stage: str, message: str, number: int = 0, said: list[str] | None = None) -> None:
        super().__init__(message)
        self.answer: dict[str, Any] = {
            "ok": False, "stage": stage, "why": message, "errno": number, "said": said or [],
        }  # fmt: skip


# --------------------------------------------------------------------------------------------------------- directories


def _open_target(request: dict[str, Any]) -> int:
    """The mount point: made where it is missing, a real directory, and empty unless it may be covered."""
    path = request["path"]
    _make(path)
    try:
        fd = kernel.open_directory(path)
    except OSError as error:
        raise _Failed("where", _why_no_directory(path, error), error.errno or 0) from None
    if not request.get("cover"):
        count = len(os.listdir(f"/proc/self/fd/{fd}"))
        if count:
            os.close(fd)
            things = f"{count} entries" if count > 1 else "an entry"
            raise _Failed(
                "where",
                f"{path} is not empty: {things} would be hidden; choose another path, or say `cover` to hide them",
                errno.ENOTEMPTY,
            )
    return fd


def _make(path: str) -> None:
    try:
        directory.make_directory(path)
    except FileExistsError:
        return  # something that is no directory: opening it says what
    except OSError as error:
        raise _Failed("where", f"{path} cannot be made: {error.strerror}", error.errno or 0) from None


def _why_no_directory(path: str, error: OSError) -> str:
    at = ""
    for part in path.strip("/").split("/"):
        at += f"/{part}"
        try:
            mode = os.lstat(at).st_mode
        except OSError as other:
            return f"{at} cannot be looked at: {other.strerror}"
        if stat.S_ISLNK(mode):
            return f"{at} is a symbolic link, to {os.readlink(at)}; a mount point is named by its real path"
        if not stat.S_ISDIR(mode):
            return f"{at} is {_kind(mode)} and no directory; move it away, or choose another path"
    return f"{path} cannot be opened: {error.strerror}"


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISREG, "a file"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((name for test, name in kinds if test(mode)), "a device")


def _own(request: dict[str, Any], notes: list[str]) -> Any:  # noqa: ANN401  a function, or None
    """What makes the root of a new mount somebody's."""
    uid, gid, mode = request.get("uid", -1), request.get("gid", -1), request.get("mode")
    if uid < 0 and mode is None:
        return None

    def change(root: int) -> None:
        found = os.fstat(root)
        try:
            if uid >= 0 and (found.st_uid, found.st_gid) != (uid, gid):
                os.fchown(root, uid, gid)
            if mode is not None and stat.S_IMODE(found.st_mode) != mode:
                os.fchmod(root, mode)
        except OSError as error:
            # A server may not allow it, and what is there is of use all the same.
            notes.append(f"its owner and mode could not be set: {error.strerror}")

    return change


# ------------------------------------------------------------------------------------------------------------ mounting


def _mount(request: dict[str, Any]) -> dict[str, Any]:
    notes: list[str] = []
    target = _open_target(request)
    root = _own(request, notes)
    if request.get("bind"):
        source = _open_source(request)
        try:
            kernel.bind(source, request["attributes"], target, recursive=request["recursive"], root=root)
        except kernel.Refused as error:
            raise _refused(request, error) from None
        return {"ok": True, "notes": notes}
    for each in request.get("make", ()):
        _make(each)
        # Whoever owns the directory above could lead what is done to it somewhere else.
        try:
            os.close(kernel.open_directory(each))
        except OSError as error:
            raise _Failed("where", _why_no_directory(each, error), error.errno or 0) from None
    for number, told in enumerate(request["told"]):
        parameters = list(told["parameters"])
        try:
            if told["host"]:
                parameters.append(f"addr={_address(told['host'])}")
            said = kernel.mount_new(
                told["type"], told["source"], parameters, told["attributes"], target, root
            )
            return {"ok": True, "notes": notes + said, "told": number}
        except kernel.Refused as error:
            # A server that does not know this version of the protocol may know the next.
            if error.errno not in {errno.EPROTONOSUPPORT, errno.EINVAL} or number + 1 == len(request["told"]):
                raise _refused(request, error) from None
    raise AssertionError


def _target(request: dict[str, Any]) -> dict[str, Any]:
    """Only the mount point, for a program that mounts by itself."""
    os.close(_open_target(request))
    return {"ok": True}


def _open_source(request: dict[str, Any]) -> int:
    try:
        return os.open(request["source"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _Failed("what", f"{request['source']}: {error.strerror}", error.errno or 0) from None


def _refused(request: dict[str, Any], error: kernel.Refused) -> _Failed:
    told = request.get("told") or [{"type": "bind", "source": request.get("source")}]
    words = os.strerror(error.errno)
    hint = {
        errno.EPERM: "; guestd needs CAP_SYS_ADMIN to mount",
        errno.ENODEV: f"; the kernel has no {told[0]['type']}, or its module is not in the image",
        errno.EUCLEAN: '; its structure is damaged: fsck = "all" mends what can be mended',
    }.get(error.errno, "")
    # No time mends these: an option it does not know, a file system it does not have, a right that guestd has not.
    stage = "where" if error.errno in {errno.EPERM, errno.ENODEV, errno.EINVAL, errno.EUCLEAN} else "mount"
    step = "" if error.step in {"mount", "fsmount"} else f" ({error.step})"
    return _Failed(stage, f"{told[-1]['source']}: {words}{step}{hint}", error.errno, error.said)


def _address(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise _Failed("what", f"{host} cannot be resolved: {error.strerror}", errno.EHOSTUNREACH) from None


def _directory(request: dict[str, Any]) -> dict[str, Any]:
    """Only a directory, the workspace's."""
    path = request["path"]
    try:
        return {"ok": True, "made": directory.make_directory(path, request["uid"], request["gid"])}
    except FileExistsError as error:
        raise _Failed("where", _why_no_directory(path, error), errno.ENOTDIR) from None


# --------------------------------------------------------------------------------------------------------------- disks


def _probe(request: dict[str, Any]) -> dict[str, Any]:
    """Which device it is, and what is on it."""
    device = _device(request["source"])
    try:
        found = superblock.find(devices.head(device))
        blank = "" if found is not None or not request["format"] else devices.not_blank(device)
    except OSError as error:
        raise _Failed("what", f"{device.path}: {error.strerror}", error.errno or 0) from None
    return {
        "ok": True, "path": device.path, "name": device.name, "number": device.number, "size": device.size,
        "found": None if found is None else found._asdict(), "not_blank": blank,
    }  # fmt: skip


def _device(source: str) -> devices.Device:
    try:
        return devices.find(source)
    except devices.NoDevice as error:
        raise _Failed("what", str(error), errno.ENXIO) from None
    except OSError as error:
        raise _Failed("what", f"{source}: {error.strerror}", error.errno or 0) from None


def _grow(request: dict[str, Any]) -> dict[str, Any]:
    """As large as its device is, where there is room for more."""
    device = _device(request["device"])
    fd = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = kernel.device_size(fd)
    finally:
        os.close(fd)
    root = os.open(request["path"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        before = _size(root)
        grow = kernel.grow_xfs if request["type"] == "xfs" else kernel.grow_ext4
        try:
            grow(root, size)
        except OSError as error:
            need = "; guestd needs CAP_SYS_RESOURCE for that" if error.errno == errno.EPERM else ""
            raise _Failed("what", f"it could not grow: {error.strerror}{need}", error.errno or 0) from None
        after = _size(root)
    finally:
        os.close(root)
    return {"ok": True, "before": before, "after": after, "device": size}


def _size(root: int) -> int:
    found = os.fstatvfs(root)
    return found.f_blocks * found.f_frsize


# ---------------------------------------------------------------------------------------------------------- unmounting


def _unmount(request: dict[str, Any]) -> dict[str, Any]:
    """The mount at a path, in the ways that are asked for, one after another until one works."""
    path = request["path"]
    done: list[str] = []
    why = ""
    number = 0
    for way in request["ways"]:
        try:
            if way == "plain":
                kernel.unmount(path)
            elif way == "read-only":
                # Still there for those that use it, and all of it written.
                kernel.make_read_only(path)
                done.append(way)
                continue
            elif way == "force":
                kernel.unmount(path, kernel.MNT_FORCE)
            else:
                kernel.unmount(path, kernel.MNT_DETACH)
            done.append(way)
            return {"ok": True, "ways": done, "why": why}
        except OSError as error:
            if not why:
                number, why = error.errno or 0, error.strerror or ""
    held = _holders(path) if number == errno.EBUSY else []
    raise _Failed("unmount", _in_words(path, number, why, held), number, done)


def _in_words(path: str, number: int, why: str, held: list[str]) -> str:
    if number == errno.EBUSY:
        by = f" by {', '.join(held)}" if held else ""
        return f"{path} is in use{by}; end them, or take it away under them with `force`"
    if number == errno.EINVAL:
        return f"nothing is mounted at {path}"
    if number == errno.EPERM:
        return f"{path}: {why}; guestd needs CAP_SYS_ADMIN to unmount"
    return f"{path}: {why}"


def _holders(path: str) -> list[str]:
    """Who has something open there, by the names of what they have open: no file is looked at."""
    found: list[str] = []
    inside = path.rstrip("/") + "/"
    for pid in os.listdir("/proc"):
        if not pid.isdecimal() or pid == str(os.getpid()):
            continue
        try:
            links = [f"/proc/{pid}/{each}" for each in ("cwd", "root")]
            links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
            if any(_leads(link, path, inside) for link in links):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    found.append(f"{file.read().strip()} ({pid})")
        except OSError:
            continue
    if any(each.target.startswith(inside) for each in _table()):
        found.append("mounts inside of it")
    more = len(found) - _HOLDERS
    return found[:_HOLDERS] + ([f"{more} more"] if more > 0 else [])


def _leads(link: str, path: str, inside: str) -> bool:
    try:
        to = os.readlink(link)
    except OSError:
        return False
    return to == path or to.startswith(inside)


def _table() -> list[mountinfo.Mounted]:
    with open(_SYSTEM, encoding="utf-8", errors="surrogateescape") as file:
        return mountinfo.parse(file)


# ------------------------------------------------------------------------------------------------------------- looking


def _look(request: dict[str, Any]) -> None:
    """How each does: a thread each, because each may wait for ever. Prints lines as they come."""
    doors = [_thread.allocate_lock() for _ in request["paths"]]

    def look(number: int) -> None:
        path = request["paths"][number]
        answer: dict[str, Any] = {"path": path, "errno": 0}
        begun = time.monotonic()
        try:
            # To open it is what tells a dead one: a server that is gone, a disk that was pulled.
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = os.fstatvfs(fd)
            finally:
                os.close(fd)
            answer |= {
                "total": found.f_blocks * found.f_frsize, "free": found.f_bavail * found.f_frsize,
                "files": found.f_files, "files_free": found.f_favail,
            }  # fmt: skip
        except OSError as error:
            answer["errno"] = error.errno or errno.EIO
        answer["took"] = time.monotonic() - begun
        os.write(1, json.dumps(answer).encode() + b"\n")
        doors[number].release()

    for number, door in enumerate(doors):
        door.acquire()
        _thread.start_new_thread(look, (number,))
    for door in doors:
        door.acquire()


_ACTIONS = {
    "mount": _mount, "target": _target, "directory": _directory, "probe": _probe, "grow": _grow, "unmount": _unmount,
}  # fmt: skip


def main() -> None:
    """Do it, and say what came of it."""
    request: dict[str, Any] = json.loads(os.environ[REQUEST])
    if request["do"] == "look":
        _look(request)
        return
    log = KernelLog()
    try:
        answer = _ACTIONS[request["do"]](request)
    except _Failed as failed:
        answer = failed.answer
        answer["said"] += [each for each in log.lines() if each not in answer["said"]]
    except OSError as error:
        answer = {"ok": False, "stage": request["do"], "why": error.strerror, "errno": error.errno or 0}
        answer["said"] = log.lines()
    os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
    # Threads may still wait in the kernel.
    os._exit(0)
