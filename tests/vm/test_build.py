"""What image/build makes: the same bytes for the same image, and of an image what its layers say and nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from image.vm import build, inputs, kernel, manifest
from image.vm.failure import Failure, find
from image.vm.unpack import unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: A member of a layer: its name, its content or the target of its link, and its type.
Member = tuple[str, str, bytes]
LOWER: tuple[Member, ...] = (
    ("bin", "", tarfile.DIRTYPE), ("bin/tool", "#!/bin/sh\n", tarfile.REGTYPE), ("gone", "old", tarfile.REGTYPE),
    ("opaque", "", tarfile.DIRTYPE), ("opaque/old", "old", tarfile.REGTYPE), ("bin/again", "bin/tool", tarfile.LNKTYPE),
    ("leads-out", "/etc", tarfile.SYMTYPE),
)  # fmt: skip
#: Enough names for each file system to have them in an order of its own.
MANY: tuple[Member, ...] = tuple(
    (f"many/{number:02}{'aÄ'[number % 2]}", "x", tarfile.REGTYPE) for number in range(60)
)
UPPER: tuple[Member, ...] = (
    (".wh.gone", "", tarfile.REGTYPE), ("opaque", "", tarfile.DIRTYPE), ("opaque/new", "new", tarfile.REGTYPE),
    ("opaque/.wh..wh..opq", "", tarfile.REGTYPE), ("leads-out/guestd-was-here", "x", tarfile.REGTYPE),
    ("../../escaped", "x", tarfile.REGTYPE),
)  # fmt: skip
#: An image that has it gets guestd's units.
SYSTEMD: tuple[Member, ...] = (("usr/lib/systemd/system/x.service", "[Unit]\n", tarfile.REGTYPE),)
CONFIG = {
    "Env": ["PATH=/bin", 'NAME=a "quoted" one'], "Entrypoint": ["/opt/guestd/bin/guestd", "init", "--", "/bin/tool"],
    "Cmd": ["--flag"], "User": "1000:1000", "WorkingDir": "/opaque",
}  # fmt: skip


def _layer(members: Sequence[Member]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.mtime, info.uid, info.mode = kind, 1_700_000_000, 1000, 0o755
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
            else:
                info.linkname = content
                tar.addfile(info)
    return out.getvalue()


def _tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _docker(path: Path, more: Sequence[Member] = ()) -> Path:
    files = {
        "lower.tar": _layer(LOWER),
        "upper.tar": _layer((*UPPER, *more)),
        "config.json": json.dumps({"config": CONFIG}).encode(),
    }
    names = [{"Config": "config.json", "Layers": ["lower.tar", "upper.tar"]}]
    return _tar(path, files | {"manifest.json": json.dumps(names).encode()})


def _oci(path: Path, *, damaged: bool = False) -> Path:
    files: dict[str, bytes] = {}

    def blob(data: bytes) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{name}"] = data
        return {"digest": f"sha256:{name}", "size": len(data)}

    zstd = subprocess.run([find("zstd"), "-c"], input=_layer(UPPER), capture_output=True, check=True).stdout
    layers = [blob(_layer(LOWER)), blob(zstd)]
    config = blob(json.dumps({"config": CONFIG}).encode())
    index = {"manifests": [blob(json.dumps({"layers": layers, "config": config}).encode())]}
    if damaged:
        name = str(layers[0]["digest"]).partition(":")[2]
        files[f"blobs/sha256/{name}"] += b"\0"
    return _tar(path, files | {"index.json": json.dumps(index).encode()})


@pytest.mark.parametrize("save", [_docker, _oci])
def test_layers_lie_over_each_other_and_stay_within(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert unpack(save(tmp_path / "image.tar"), root) == CONFIG
    found = sorted(str(each.relative_to(root)) for each in root.rglob("*"))
    assert found == [
        "bin", "bin/again", "bin/tool", "escaped", "etc", "etc/guestd-was-here", "leads-out", "opaque", "opaque/new",
    ]  # fmt: skip
    tool = (root / "bin/tool").stat()
    assert (tool.st_uid, tool.st_nlink, tool.st_mtime, tool.st_mode & 0o7777) == (
        1000,
        2,
        1_700_000_000,
        0o755,
    )
    assert not os.path.exists("/etc/guestd-was-here")


def test_a_layer_with_another_digest_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(Failure, match="another digest"):
        unpack(_oci(tmp_path / "image.tar", damaged=True), root)


@pytest.fixture(scope="module")
def fake_guestd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("opt") / "guestd"
    (place / "bin").mkdir(parents=True)
    (place / "bin/guestd").write_text("#!/bin/sh\n")
    return place


@pytest.fixture(scope="module")
def found_kernel() -> kernel.Kernel:
    """Debian's, asked for once: half the time of so small a build is apt's."""
    return kernel.debians()


@pytest.mark.parametrize("kind", ["ext4", "erofs", "squashfs"])
def test_the_same_image_gives_the_same_bytes(
    tmp_path: Path, fake_guestd: Path, found_kernel: kernel.Kernel, kind: str
) -> None:
    """Kernel, initramfs, root, and the manifest, which has the digests of the others. The second time by somebody else
    in another place, with another time zone, language and umask (of 077 kept everybody but root out of folders made in
    the machine); and by a checkout that has only what a cached machine is known by: so that is all of it.
    """
    image = _docker(tmp_path / "image.tar", (*SYSTEMD, *MANY))
    vmlinuz, modules = found_kernel.image, found_kernel.modules
    assert modules is not None
    one = build.build(
        build.Plan(
            source=image,
            output=tmp_path / "one",
            type=kind,
            guestd=fake_guestd,
            kernel=vmlinuz,
            modules=modules,
        )
    )
    for each in inputs.files_of_machine():
        copy = tmp_path / "checkout" / each.relative_to(inputs.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(each, copy)
    program = tmp_path / "checkout/image/vm"
    # Names are in another order on another file system.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        two = Path(elsewhere, "deeper", "two")
        words = ["build", image, "--output", two, "--type", kind, "--guestd", fake_guestd]
        words += ["--kernel", vmlinuz, "--modules", modules]
        subprocess.run(
            [sys.executable, "-B", "-S", program, *words], stdout=subprocess.DEVNULL, check=True, umask=0o077,
            env={**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7"},
        )  # fmt: skip
        assert one.read_bytes() == (two / manifest.NAME).read_bytes()
        manifest.read(two).check()
    found = manifest.read(one)
    found.check()
    with (tmp_path / "one" / f"root.{kind}").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff")
    with pytest.raises(Failure, match="digest differs"):
        found.check()


def test_what_the_image_says_becomes_settings(tmp_path: Path, fake_guestd: Path) -> None:
    from guestd.config import resolve

    output = tmp_path / "built"
    build.build(build.Plan(source=_docker(tmp_path / "image.tar"), output=output, guestd=fake_guestd))
    text = subprocess.run(
        [find("debugfs"), "-R", "cat /etc/guestd/guestd.toml", output / "root.ext4"],
        capture_output=True,
        check=True,
    ).stdout
    found = resolve(file=text, file_name="guestd.toml", cmdline="", environ={})
    assert not found.problems
    settings = found.settings
    assert settings.workload.command == ("/bin/tool", "--flag")
    assert (settings.workload.cwd, settings.user) == ("/opaque", "1000")
    assert dict(settings.env) == {"PATH": "/bin", "NAME": 'a "quoted" one'}
