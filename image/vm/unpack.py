"""The file system of a container image, from the tar that `docker save`, `podman save` or `skopeo` wrote, or from the
tar of a root file system (`docker export`).

Layers are put over each other as the OCI's specification has it: a `.wh.NAME` takes NAME of the layers below away, a
`.wh..wh..opq` all that they had in that folder. They are unpacked by a process that has made the new root its own
(chroot): whatever names and links somebody has written into an archive, they lead nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from image.vm.failure import Failure, find

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_ZSTD = b"\x28\xb5\x2f\xfd"
_XATTR = "SCHILY.xattr."


def unpack(source: Path, root: Path) -> dict[str, Any]:
    """Into the empty folder `root`. Returns what the image says of how it is run (Env, Cmd…), if anything."""
    if os.geteuid() != 0:
        raise Failure("unpacking an image needs root, for its owners and modes")
    with tarfile.open(source) as outer:
        names = set(outer.getnames())
        if "manifest.json" in names:
            layers, config = _docker(outer)
        elif "index.json" in names:
            layers, config = _oci(outer)
        else:
            with source.open("rb") as file:
                _in_root(root, file)
            return {}
        for name in layers:
            member = outer.extractfile(name)
            if member is None:
                raise Failure(f"{source}: its layer {name} is not in it")
            _check(name, member, source)
            member.seek(0)
            _in_root(root, member)
        return config


def _json(outer: tarfile.TarFile, name: str) -> Any:  # noqa: ANN401  whatever JSON says
    try:
        file = outer.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise Failure(f"{outer.name}: {name} is not in it; it is no whole image")
    return json.load(file)


def _docker(outer: tarfile.TarFile) -> tuple[list[str], dict[str, Any]]:
    images = _json(outer, "manifest.json")
    if len(images) != 1:
        raise Failure(f"{outer.name}: {len(images)} images are in it; save one")
    return images[0]["Layers"], _json(outer, images[0]["Config"]).get("config") or {}


def _oci(outer: tarfile.TarFile) -> tuple[list[str], dict[str, Any]]:
    found = _json(outer, "index.json")["manifests"]
    while True:
        ours = [each for each in found if each.get("platform", {}).get("architecture", "amd64") == "amd64"]
        if not ours:
            raise Failure(f"{outer.name}: no image for amd64 is in it")
        manifest = _json(outer, _blob(ours[0]["digest"]))
        if "layers" in manifest:
            break
        found = manifest["manifests"]
    config: dict[str, Any] = _json(outer, _blob(manifest["config"]["digest"])).get("config") or {}
    return [_blob(each["digest"]) for each in manifest["layers"]], config


def _blob(digest: str) -> str:
    kind, _, name = digest.partition(":")
    return f"blobs/{kind}/{name}"


def _check(name: str, file: IO[bytes], source: Path) -> None:
    """Where a layer's name is its digest, it has to be true."""
    kind, _, expected = name.removeprefix("blobs/").partition("/")
    if name.startswith("blobs/") and kind == "sha256":
        found = hashlib.sha256()
        while piece := file.read(1 << 20):
            found.update(piece)
        if found.hexdigest() != expected:
            raise Failure(f"{source}: the layer {expected[:12]} has another digest: the file is damaged")


def _in_root(root: Path, layer: IO[bytes]) -> None:
    """In a child: chroot is for good."""
    magic = layer.read(4)
    layer.seek(0)
    sys.stdout.flush()
    sys.stderr.flush()
    unpacker: subprocess.Popen[bytes] | None = None
    source: IO[bytes] = layer
    if magic == _ZSTD:
        unpacker = subprocess.Popen([find("zstd"), "-dc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert unpacker.stdin is not None
        assert unpacker.stdout is not None
        source = unpacker.stdout
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if unpacker is not None and unpacker.stdin is not None:
                unpacker.stdin.close()
            os.chroot(root)
            os.chdir("/")
            _layer(source)
            status = 0
        except Exception as error:  # noqa: BLE001  the parent fails with it
            os.write(2, f"guestd: {error!r}\n".encode())
        finally:
            os._exit(status)
    if unpacker is not None and unpacker.stdin is not None:
        source.close()
        with suppress(BrokenPipeError):
            shutil.copyfileobj(layer, unpacker.stdin, 1 << 20)
            unpacker.stdin.close()
        unpacker.wait()
    if os.waitpid(child, 0)[1] != 0:
        raise Failure("a layer could not be unpacked (see above)")


class _Times:
    """When folders were last changed, which is to be as the archives say, and not now."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}

    def keep(self, folder: str) -> None:
        """Something in it is about to change. It is made if it is not there."""
        # Through links, as whoever unpacks an image does; a link may lead to what is only made by this.
        folder = os.path.realpath(folder)
        if folder in self._before:
            return
        if not os.path.isdir(folder):
            self.keep(os.path.dirname(folder))
            os.mkdir(folder, 0o755)
            self._before[folder] = 0.0
        else:
            self._before[folder] = os.stat(folder).st_mtime

    def restore(self) -> None:
        for folder, time in self._before.items():
            with suppress(FileNotFoundError):  # a later member has taken it away
                os.utime(folder, (time, time))


def _layer(file: IO[bytes]) -> None:
    os.umask(0)
    times = _Times()
    folders: list[tuple[str, tarfile.TarInfo]] = []
    here: set[str] = set()
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for member in tar:
            path = os.path.normpath(f"/{member.name}")
            parent, name = os.path.split(path)
            times.keep(parent)
            if name == _OPAQUE:
                for each in list(_children(parent)):
                    if each not in here:
                        _remove(each)
            elif name.startswith(_WHITEOUT):
                _remove(os.path.join(parent, name.removeprefix(_WHITEOUT)))
            else:
                _place(tar, member, path, folders)
                while path != "/" and path not in here:
                    here.add(path)
                    path = os.path.dirname(path)
    times.restore()
    for path, member in reversed(folders):
        _dress(path, member)


def _place(
    tar: tarfile.TarFile, member: tarfile.TarInfo, path: str, folders: list[tuple[str, tarfile.TarInfo]]
) -> None:
    if member.isdir():
        if not os.path.isdir(path) or os.path.islink(path):
            _remove(path)
            os.mkdir(path)
        # What comes into it changes its time, and its mode may keep others out: at the end.
        folders.append((path, member))
        return
    _remove(path)
    if member.islnk():
        os.link(os.path.normpath(f"/{member.linkname}"), path, follow_symlinks=False)
        return
    if member.issym():
        os.symlink(member.linkname, path)
    elif member.isreg():
        content = tar.extractfile(member)
        assert content is not None
        with open(path, "wb") as out:
            shutil.copyfileobj(content, out, 1 << 20)
    elif member.ischr() or member.isblk():
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        os.mknod(path, kind | 0o600, os.makedev(member.devmajor, member.devminor))
    elif member.isfifo():
        os.mkfifo(path)
    else:
        return
    _dress(path, member)


def _dress(path: str, member: tarfile.TarInfo) -> None:
    """Owner first: a change of it takes set-uid away, and a file's capabilities."""
    os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        os.chmod(path, member.mode & 0o7777)
        for key, value in member.pax_headers.items():
            if key.startswith(_XATTR):
                with suppress(OSError):  # one that only the machine it comes from has
                    os.setxattr(path, key.removeprefix(_XATTR), value.encode("utf-8", "surrogateescape"))
    os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)


def _children(folder: str) -> Iterator[str]:
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):
            yield os.path.join(folder, name)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
