"""What `image/build` has made, as one JSON file beside it: all that `image/run`, or anybody's own program, has to know.

{"guestd": 1,                                the form of this file
 "kernel":    {"file", "release", "bytes", "sha256"},
 "vmlinux":   the same kernel unpacked, which Firecracker wants; null where it could not be
 "initramfs": {"file", "bytes", "sha256"},
 "root":      {"file", "type", "bytes", "sha256"},   the first disk; never written to
 "cmdline":   "root=/dev/vda …",             what any hypervisor passes; its own console goes before it
 "ports":     {"guestd": 1024},              vsock ports that listen in the guest
 "workspace": {"label", "serial", "tag", "path"}}    by which the guest finds a disk or a share of its work, and where
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from image.vm import cache
from image.vm.failure import Failure

if TYPE_CHECKING:
    from pathlib import Path

FORM = 1
NAME = "manifest.json"
PORT = 1024
#: A file system's label, a disk's serial number and a share's tag.
WORKSPACE = "workspace"
WORKSPACE_PATH = "/mnt/workspace"


@dataclass(frozen=True)
class Manifest:
    """One that was read, and the folder that its files are in."""

    folder: Path
    fields: dict[str, Any]

    def file(self, part: str) -> Path:
        return self.folder / self.fields[part]["file"]

    @property
    def cmdline(self) -> str:
        return self.fields["cmdline"]

    @property
    def port(self) -> int:
        return self.fields["ports"]["guestd"]

    def check(self) -> None:
        """Each file is the one that was made."""
        for part in ("kernel", "vmlinux", "initramfs", "root"):
            found = self.fields[part]
            if found is None:
                continue
            path = self.file(part)
            if not path.exists():
                raise Failure(f"{path} is missing; build it again: image/build")
            if cache.digest(path) != found["sha256"]:
                raise Failure(
                    f"{path} is not the file that was made (its digest differs); build it again: image/build"
                )


def describe(folder: Path, path: Path, **more: str) -> dict[str, Any]:
    return {
        "file": str(path.relative_to(folder)), **more, "bytes": path.stat().st_size, "sha256": cache.digest(path)
    }  # fmt: skip


def write(folder: Path, fields: dict[str, Any]) -> Path:
    path = folder / NAME
    path.write_text(json.dumps({"guestd": FORM, **fields}, indent=1) + "\n")
    return path


def read(where: Path) -> Manifest:
    """`where`: the file, or the folder that it is in."""
    path = where / NAME if where.is_dir() else where
    try:
        fields: object = json.loads(path.read_text())
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}; image/build makes one") from None
    except ValueError:
        raise Failure(f"{path} is no manifest of image/build's: it is not JSON") from None
    found = cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}
    if found.get("guestd") != FORM:
        raise Failure(f"{path} is no manifest of image/build's, or one of another version (wanted: {FORM})")
    return Manifest(path.parent, found)
