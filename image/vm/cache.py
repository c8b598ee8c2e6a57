"""What is made once and used again: $XDG_CACHE_HOME/guestd/machine, each in a folder named for what it is made of.

A thing is there whole or not at all: it is made in a folder beside it, under a lock, and moved. With it go the digests
of its files. They are checked when it is used: a file whose digest is another is a disk's or somebody's mistake, and
the thing is made anew. A file that is as it was when it was last checked (its inode, size and times) is not read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from image.vm.failure import say

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_SUMS, _SEEN = "SHA256SUMS", ".checked"


def folder() -> Path:
    """Of all of them."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME") or "/tmp", ".cache")
    return Path(base, "guestd", "machine")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def named(*parts: object) -> str:
    """A short name for whatever something is made of."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def locked(name: str) -> Generator[None]:
    """One at a time, on this machine, makes what is called so."""
    where = folder()
    where.mkdir(parents=True, exist_ok=True)
    fd = os.open(where / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def keep(
    kind: str, name: str, make: Callable[[Path], None], current: Callable[[Path], bool] = lambda _: True
) -> Path:
    """The folder of that thing, made now if it is not there or not as it was made.

    `current`: whether one that is as it was made is what would be made now as well.
    """
    place = folder() / kind / name
    if _is_whole(place) and current(place):
        return place
    with locked(f"{kind}-{name}"):
        if (whole := _is_whole(place)) and current(place):
            return place
        if place.exists():
            why = "was made of something that has changed since" if whole else "is not as it was made"
            say(f"{place} {why}; making it anew")
            shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        # Whoever was killed while making it has left this behind: nobody else makes it while it is locked.
        for left in place.parent.glob(f".{name}.*"):
            shutil.rmtree(left, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=place.parent))
        try:
            make(fresh)
            sums = {str(each.relative_to(fresh)): digest(each) for each in _files(fresh)}
            (fresh / _SUMS).write_text("".join(f"{value}  {file}\n" for file, value in sorted(sums.items())))
            fresh.chmod(0o755)
            fresh.rename(place)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        _note(place)
    return place


def sum_of(place: Path) -> str:
    """One digest for all that was made there."""
    return digest(place / _SUMS)


_held: dict[Path, int] = {}


def hold(place: Path) -> bool:
    """Nobody drops it while this process lives. False when somebody has, a moment ago: then it is made anew."""
    if place in _held:
        return True
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    fcntl.flock(fd, fcntl.LOCK_SH)
    try:
        if os.path.samestat(os.fstat(fd), place.stat()):
            _held[place] = fd
            return True
    except FileNotFoundError:
        pass
    os.close(fd)
    return False


def release() -> None:
    """Hold nothing any more."""
    while _held:
        os.close(_held.popitem()[1])


def drop(place: Path) -> None:
    """Take it away, unless somebody holds it."""
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(place, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def kept(kind: str) -> list[Path]:
    """All of that kind, the newest first."""
    found = [each for each in (folder() / kind).glob("[!.]*") if (each / _SUMS).exists()]
    return sorted(found, key=lambda each: each.stat().st_mtime, reverse=True)


def _files(place: Path) -> list[Path]:
    return sorted(
        each
        for each in place.rglob("*")
        if each.is_file() and not each.is_symlink() and each.name not in {_SUMS, _SEEN}
    )


def _is_whole(place: Path) -> bool:
    try:
        lines = (place / _SUMS).read_text().splitlines()
    except OSError:
        return False
    seen = _looked_at(place)
    fresh = False
    for line in lines:
        expected, _, name = line.partition("  ")
        path = place / name
        try:
            state = _state(path)
            if seen.get(name) == state:
                continue
            if digest(path) != expected:
                return False
        except OSError:
            return False
        fresh = True
    if fresh:
        _note(place)
    return True


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _looked_at(place: Path) -> dict[str, list[int]]:
    try:
        return json.loads((place / _SEEN).read_text())
    except (OSError, ValueError):
        return {}


def _note(place: Path) -> None:
    seen = {str(each.relative_to(place)): _state(each) for each in _files(place)}
    fresh = place / f"{_SEEN}.{os.getpid()}"
    fresh.write_text(json.dumps(seen))
    fresh.rename(place / _SEEN)
