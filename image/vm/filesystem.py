"""A folder as a file system in a file, without a loop device; the same bytes for the same content."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from image.vm.failure import Failure, run

if TYPE_CHECKING:
    from pathlib import Path

TYPES = ("ext4", "erofs", "squashfs")
#: The ids of file systems are random otherwise. Machines never see two of them at once.
_UUID = "67756573-7464-4000-8000-726f6f740000"
_HASH = "67756573-7464-4000-8000-686173680000"
_BLOCK = 4096


def make(kind: str, root: Path, image: Path, time: int) -> None:
    """`image` does not exist yet. `time`: of everything that a file system notes by itself."""
    match kind:
        case "ext4":
            _ext4(root, image, time)
        case "erofs":
            run("mkfs.erofs", "--quiet", "-U", _UUID, f"-T{time}", "-Enoinline_data", image, root)
        case "squashfs":
            # It takes the time from the environment, and refuses to be told twice.
            environ = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
            run(
                "mksquashfs", root, image, "-quiet", "-no-progress", "-noappend", "-reproducible", "-comp", "zstd",
                "-Xcompression-level", "3", "-mkfs-time", str(time), "-all-time", str(time), env=environ,
            )  # fmt: skip
        case _:
            raise Failure(f"no file system {kind} is made here; there are {', '.join(TYPES)}")


def _ext4(root: Path, image: Path, time: int) -> None:
    """Without a journal: nobody writes to it, since a machine's own writes go to memory."""
    blocks, inodes = _needs(root)
    inodes += 64
    size = blocks + inodes * 256 // _BLOCK
    # Bitmaps and tables; and what mke2fs rounds.
    size += size // 50 + 2048
    environ = {
        **os.environ,
        "E2FSPROGS_FAKE_TIME": str(time),
        "SOURCE_DATE_EPOCH": str(time),
        "MKE2FS_CONFIG": os.devnull,
    }
    run(
        "mke2fs", "-q", "-d", root, "-b", str(_BLOCK), "-I", "256", "-N", str(inodes), "-m", "0", "-L", "root",
        "-O", "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,"
        "huge_file,dir_nlink,extra_isize,metadata_csum",
        "-U", _UUID, "-E", f"hash_seed={_HASH},root_owner=0:0,lazy_itable_init=0,nodiscard",
        image, f"{size * _BLOCK // 1024}K",
        env=environ,
    )  # fmt: skip
    _even_out(image, time, environ)


def _needs(root: Path) -> tuple[int, int]:
    """Blocks and inodes."""
    blocks, inodes, seen = 0, 0, set[int]()
    for folder, folders, files in os.walk(root):
        blocks += 1 + sum(len(name) + 12 for name in (*folders, *files)) // (_BLOCK - 1024)
        for name in (*folders, *files):
            found = os.lstat(os.path.join(folder, name))
            if found.st_ino in seen:
                continue
            seen.add(found.st_ino)
            inodes += 1
            if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):
                # A file in more than a few pieces needs a block to say where they are.
                blocks += -(-found.st_size // _BLOCK) + (1 if found.st_size > 4 << 20 else 0)
    return blocks, inodes + 1


def _even_out(image: Path, time: int, environ: dict[str, str]) -> None:
    """mke2fs takes over when an inode was last changed, which nobody can set; and when it was last read."""
    head = run("dumpe2fs", "-h", image, env=environ)
    count = next(int(line.split()[-1]) for line in head.splitlines() if line.startswith("Inode count:"))
    asked = "".join(f"testi <{each}>\n" for each in range(1, count + 1))
    told = run("debugfs", "-f", "-", image, env=environ, input=asked)
    used = [int(line.split()[1]) for line in told.splitlines() if "marked in use" in line]
    fields = ("ctime", "atime", "crtime")
    script = "".join(
        f"sif <{each}> {field} @{time}\nsif <{each}> {field}_extra 0\n" for each in used for field in fields
    )
    run("debugfs", "-w", "-f", "-", image, env=environ, input=script)
