"""Files for tests: folders that any user can reach, contents that tell where they were torn, and clients that ask."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import guestd
from guestd.client import connect
from tests.support.server import serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from guestd.client import Client
    from tests.support.server import Server

#: Names that go wrong where a name is taken for text, for a line, or for an argument.
NAMES = [
    b"plain",
    b"with space",
    b"new\nline",
    b"tab\there",
    b"-dash",
    b"\xff\xfe not utf-8",
    "gr\u00fc\u00df \u65e5\u672c".encode(),
    b"x" * 255,
    b"*?[a]",
    b"'\"$`\\",
    b".hidden",
    b"\x01\x7f",
]


@contextlib.asynccontextmanager
async def asking(config: str | None = None) -> AsyncGenerator[tuple[Server, Client]]:
    """A guestd, and a client of it."""
    with serving(config=config) as server:
        async with connect(server.address) as client:
            yield server, client
        server.stop()
        assert "Traceback" not in server.log, server.log


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes of which no two stretches are alike."""
    block = b"".join(hashlib.sha256(b"%d %d" % (seed, at)).digest() for at in range(2048))
    return (block * (size // len(block) + 1))[:size]


def tree_of(top: Path) -> dict[bytes, tuple[Any, ...]]:
    """All that is to be kept of a tree: kinds, modes, times, contents, which names are one file."""
    found: dict[bytes, tuple[Any, ...]] = {}
    first: dict[tuple[int, int], bytes] = {}
    root = os.fsencode(top)
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            inside = os.path.relpath(path, root)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).digest(), status.st_size
                found[inside + b" is"] = (first.setdefault((status.st_dev, status.st_ino), inside),)
            found[inside] = kind, stat.S_IMODE(status.st_mode), status.st_mtime_ns, content
    return found


@contextlib.contextmanager
def mounted_tmpfs(path: Path, options: str) -> Generator[None]:
    """A small file system in memory."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def guestctl(
    address: str, *arguments: str | bytes, input: bytes | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run guestctl to its end."""
    return subprocess.run(
        [sys.executable, "-m", "guestd.ctl", "--to", address, *arguments],
        capture_output=True, check=False, timeout=180, env=environment(), input=input, cwd=cwd,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """What guestctl gets: the guestd that this test has imported, and nothing of the developer's."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(guestd.__file__).resolve().parents[1])}


def agents_of(server: Server) -> list[int]:
    """The file processes of a guestd."""
    found: list[int] = []
    children: list[int] = []
    for thread in os.listdir(f"/proc/{server.pid}/task"):
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),  # it has ended meanwhile
            open(f"/proc/{server.pid}/task/{thread}/children", encoding="ascii") as file,
        ):
            children += [int(word) for word in file.read().split()]
    for pid in set(children):
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            open(f"/proc/{pid}/cmdline", "rb") as file,
        ):
            if b"storage.agent" in file.read():
                found.append(pid)
    return found


def left_over(folder: Path) -> list[str]:
    """What transfers have left behind."""
    return [
        name
        for _, folders, files in os.walk(folder)
        for name in [*folders, *files]
        if name.startswith(".guestd-")
    ]
