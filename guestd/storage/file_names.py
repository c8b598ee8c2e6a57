"""What concerns names: stat, list, make, remove, move. Run in the file process, as the user who asks."""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from guestd.storage.file_line import END, Line, Refused
from guestd.storage.file_packing import pack
from guestd.storage.file_places import Places, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LISTING = 32 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)


def stat_(line: Line, places: Places, ask: dict[str, Any]) -> None:
    """One entry. `follow`: what a symlink at its end leads to."""
    fd = places.open(ask["path"], os.O_PATH | (0 if ask["follow"] else os.O_NOFOLLOW))
    try:
        line.say(END, _told(fd))
    finally:
        os.close(fd)


def _told(fd: int) -> dict[str, Any]:
    found = describe(os.fstat(fd))
    if found["type"] == "symlink":
        found["target"] = os.readlink(b"", dir_fd=fd).decode("utf-8", "surrogateescape")
    return found


def list_(line: Line, places: Places, ask: dict[str, Any]) -> None:
    """What is in a folder, as maps behind each other on stream 1."""
    fd = places.open(ask["path"], os.O_RDONLY | os.O_DIRECTORY)
    try:
        line.say(0x11, {})
        out, offset, count = bytearray(), 0, 0
        with os.scandir(fd) as listing:
            for entry in listing:
                try:
                    status = entry.stat(follow_symlinks=False)
                    fields = {"name": entry.name, **describe(status)}
                    if stat.S_ISLNK(status.st_mode):
                        fields["target"] = os.readlink(entry.name, dir_fd=fd)
                except FileNotFoundError:
                    continue  # gone meanwhile
                out += pack(fields)
                count += 1
                if len(out) >= _LISTING:
                    line.bytes(1, offset, bytes(out))
                    offset += len(out)
                    out.clear()
                line.alive()
        if out:
            line.bytes(1, offset, bytes(out))
        line.say(END, {"entries": count})
    finally:
        os.close(fd)


def make(line: Line, places: Places, ask: dict[str, Any]) -> None:
    """A folder. `parents`: with those on the way to it, and one that is there is fine."""
    folder, name = places.parent(ask["path"], make=ask["parents"])
    try:
        mode = ask["mode"]
        created = True
        try:
            os.mkdir(name, 0o777 if mode is None else mode, dir_fd=folder)
        except FileExistsError:
            if not ask["parents"]:
                raise
            created = False
        fd = os.open(name, _FOLDER if created else os.O_PATH | os.O_DIRECTORY, dir_fd=folder)
        try:
            if created and mode is not None:
                os.chmod(fd, mode)  # past the umask: it was asked for
            line.say(END, {"created": created, **describe(os.fstat(fd))})
        finally:
            os.close(fd)
    finally:
        os.close(folder)


def remove(line: Line, places: Places, ask: dict[str, Any]) -> None:
    """A file, a symlink itself, an empty folder; with `recursive` a folder and all in it. Nothing is followed."""
    folder, name = places.parent(ask["path"])
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
            line.say(END, {"removed": 1})
            return
        count = _empty(line, os.open(name, _FOLDER, dir_fd=folder)) if ask["recursive"] else 0
        os.rmdir(name, dir_fd=folder)
        line.say(END, {"removed": count + 1})
    finally:
        os.close(folder)


def _empty(line: Line, top: int) -> int:
    """Remove all that is in an open folder, and close it. What comes to be in it meanwhile may stay."""
    count = 0
    stack: list[tuple[int, str, list[tuple[str, bool]]]] = [(top, "", _names(top))]
    try:
        while stack:
            fd, _, names = stack[-1]
            if not names:
                os.close(fd)
                _, name, _ = stack.pop()
                if stack:
                    os.rmdir(name, dir_fd=stack[-1][0])
                    count += 1
                continue
            name, is_folder = names.pop()
            line.alive()
            try:
                if is_folder:
                    below = os.open(name, _FOLDER, dir_fd=fd)
                    stack.append((below, name, []))
                    stack[-1] = (below, name, _names(below))
                    continue
                os.unlink(name, dir_fd=fd)
                count += 1
            except FileNotFoundError:
                pass
    finally:
        for fd, _, _ in stack:
            os.close(fd)
    return count


def _names(fd: int) -> list[tuple[str, bool]]:
    with os.scandir(fd) as listing:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing]


def move(line: Line, places: Places, ask: dict[str, Any]) -> None:
    """Give something another name on the same file system, in one step. `replace`: a file there gives way."""
    source, name = places.parent(ask["path"])
    try:
        target, new = places.parent(ask["to"])
        try:
            if ask["replace"]:
                os.rename(name, new, src_dir_fd=source, dst_dir_fd=target)
            elif _libc.renameat2(source, name, target, new, _NOREPLACE):
                number = ctypes.get_errno()
                if number == errno.EINVAL:
                    raise Refused("unsupported", "this file system cannot move without replacing")
                raise OSError(number, os.strerror(number))
            line.say(END, describe(os.stat(new, dir_fd=target, follow_symlinks=False)))
        finally:
            os.close(target)
    except OSError as error:
        if error.errno == errno.EXDEV and not places.beneath:
            raise Refused(
                "file",
                f"{ask['path'].decode('utf-8', 'surrogateescape')!r} cannot be moved to another file system in one"
                " step: copy it, then remove it (EXDEV)",
                errno=errno.EXDEV, errno_name="EXDEV",
            ) from None  # fmt: skip
        raise
    finally:
        os.close(source)
