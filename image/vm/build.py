"""`image/build`: from a container image, a folder, or nothing but Debian, to what a hypervisor boots."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image.vm import base, cache, debian, filesystem, initramfs, inputs, kernel, manifest, unpack
from image.vm.failure import Failure, run, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USAGE = """\
image/build [IMAGE] --output DIR [options]

IMAGE is a container image as `docker save`, `podman save` or `skopeo copy` write it (a tar), the tar of a root file
system (`docker export`), or a folder that is one. Without it, a Debian is made with debootstrap."""
INIT = "/opt/guestd/bin/guestd"
#: Needed by a kernel and its init; an image that was made for a container may lack them.
_FOLDERS = ("dev", "etc/guestd", "mnt/workspace", "proc", "root", "run", "sys", "tmp", "var", "var/tmp")
_MODES = {"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}
_ROOT = inputs.ROOT
#: Beside /opt/guestd in the cache: the files of this machine that went into it.
_MADE_OF = "made-of"
#: panic=-1: start again at once, so that a hypervisor sees it. Then what no virtual machine has, and what makes a boot
#: slow to look for.
_CMDLINE = "panic=-1 quiet random.trust_cpu=on i8042.noaux i8042.nomux i8042.dumbkbd 8250.nr_uarts=1"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to make."""

    source: Path | None = None
    output: Path
    type: str = "ext4"
    #: The folder that is /opt/guestd; None makes one where the image has none.
    guestd: Path | None = None
    kernel: Path | None = None
    modules: Path | None = None
    #: A package of Debian's, where there is no kernel of one's own.
    kernel_package: str = debian.KERNEL
    load: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    init: str = INIT
    append: str = ""
    grpc: bool = True


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="image/build", usage=USAGE, allow_abbrev=False)
    parser.add_argument("source", nargs="?", type=Path, metavar="IMAGE")
    parser.add_argument(
        "--output", "-o", type=Path, required=True, metavar="DIR", help="where all of it goes"
    )
    parser.add_argument(
        "--type", choices=filesystem.TYPES, default="ext4", help="of the root's file system (ext4)"
    )
    parser.add_argument(
        "--guestd",
        type=Path,
        metavar="DIR",
        help="what becomes /opt/guestd; else the image's own, else one is made",
    )
    parser.add_argument("--kernel", type=Path, metavar="FILE", help="one of your own, else one of Debian's")
    parser.add_argument(
        "--kernel-package",
        default=debian.KERNEL,
        metavar="NAME[/SUITE]",
        help=f"which of Debian's ({debian.KERNEL}); of another release: {debian.KERNEL}/bookworm-backports",
    )
    parser.add_argument(
        "--modules", type=Path, metavar="DIR", help="of that kernel: lib/modules/RELEASE; else all is in it"
    )
    parser.add_argument(
        "--load",
        action="append",
        default=[],
        metavar="MODULE",
        help="one more to load before the root is mounted",
    )
    parser.add_argument(
        "--package",
        action="append",
        default=[],
        metavar="NAME",
        help="one more of Debian's; without an IMAGE only",
    )
    parser.add_argument("--init", default=INIT, metavar="PATH", help=f"PID 1 ({INIT})")
    parser.add_argument("--append", default="", metavar="WORDS", help="more for the kernel's command line")
    given = parser.parse_args(arguments)
    if given.kernel and given.kernel_package != debian.KERNEL:
        raise Failure("--kernel is one of your own, and --kernel-package one of Debian's: say one of them")
    if given.package and given.source:
        raise Failure("--package is for the Debian that is made without an IMAGE: put it into the image")
    plan = Plan(
        source=given.source, output=given.output, type=given.type, guestd=given.guestd, kernel=given.kernel,
        modules=given.modules, kernel_package=given.kernel_package, load=tuple(given.load),
        packages=tuple(given.package), init=given.init, append=given.append,
    )  # fmt: skip
    path = build(plan)
    for part in ("kernel", "vmlinux", "initramfs", "root"):
        found = manifest.read(path).fields[part]
        if found:
            print(f"{found['bytes'] / 1e6:8.1f} MB  {path.parent / found['file']}")
    print(f"start it: image/run {path.parent}")
    return 0


def build(plan: Plan) -> Path:
    """Make it; returns the manifest's path. The folder is there whole or not at all."""
    # What is made in the root is for everybody in the machine, whoever builds it.
    before = os.umask(0o022)
    try:
        return _build(plan)
    finally:
        os.umask(before)


def _build(plan: Plan) -> Path:
    time = int(os.environ.get("SOURCE_DATE_EPOCH") or 1)
    output = plan.output.absolute()
    if output.exists() and not (output / manifest.NAME).exists() and any(output.iterdir()):
        raise Failure(f"{output} is there, and nothing that image/build made: remove it, or name another")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        whole = Path(scratch) / "whole"
        whole.mkdir()
        root = Path(scratch) / "root"
        root.mkdir()
        # Many an archive says nothing of its own top.
        os.utime(root, (0, 0))
        chosen = (
            kernel.given(plan.kernel, plan.modules) if plan.kernel else kernel.debians(plan.kernel_package)
        )
        modules = kernel.modules(chosen, plan.type, plan.load)
        _fill(plan, root, modules)
        image = whole / f"root.{plan.type}"
        filesystem.make(plan.type, root, image, time)
        shutil.rmtree(root)
        shutil.copyfile(chosen.image, whole / "vmlinuz")
        unpacked = kernel.elf(chosen.image)
        if unpacked is not None:
            (whole / "vmlinux").write_bytes(unpacked)
        (whole / "initramfs").write_bytes(initramfs.make(modules.first, time))
        manifest.write(whole, {
            "kernel": manifest.describe(whole, whole / "vmlinuz", release=chosen.release),
            "vmlinux": None if unpacked is None else manifest.describe(whole, whole / "vmlinux"),
            "initramfs": manifest.describe(whole, whole / "initramfs"),
            "root": manifest.describe(whole, image, type=plan.type),
            "cmdline": " ".join(
                filter(None, (f"root=/dev/vda rootfstype={plan.type} ro init={plan.init}", _CMDLINE, plan.append))
            ),
            "ports": {"guestd": manifest.PORT},
            "workspace": {
                "label": manifest.WORKSPACE, "serial": manifest.WORKSPACE, "tag": manifest.WORKSPACE,
                "path": manifest.WORKSPACE_PATH,
            },
        })  # fmt: skip
        if output.exists():
            shutil.rmtree(output)
        whole.rename(output)
    return output / manifest.NAME


def _fill(plan: Plan, root: Path, modules: kernel.Modules) -> None:
    """All that the root file system is to have."""
    config: dict[str, Any] = {}
    if plan.source is None:
        packages = tuple(sorted({*base.PACKAGES, *plan.packages}))
        unpack.unpack(base.bootstrap(packages=packages), root)
    elif plan.source.is_dir():
        run("cp", "-a", f"{plan.source}/.", root)
    elif plan.source.is_file():
        config = unpack.unpack(plan.source, root)
    else:
        raise Failure(f"there is no image {plan.source}: a tar or a folder is wanted")
    given = os.environ.get("SOURCE_DATE_EPOCH")
    latest = float(given) if given else max(os.lstat(path).st_mtime for path in _all(root))
    for name in _FOLDERS:
        _folder(root, name)
    for name, content in modules.root.items():
        folder, _, file = name.rpartition("/")
        (_folder(root, folder) / file).write_bytes(content)
    ours = root / "opt/guestd"
    if plan.guestd is not None or not (ours / "bin/guestd").exists():
        if ours.exists():
            shutil.rmtree(ours)
        (root / "opt").mkdir(exist_ok=True)
        run("cp", "-a", plan.guestd or guestd(grpc=plan.grpc), ours)
        for each in ("guestd", "guestctl"):
            link = root / "usr/local/bin" / each
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink() and not link.exists():
                link.symlink_to(f"/opt/guestd/bin/{each}")
    _add_units(root)
    settings = root / "etc/guestd/guestd.toml"
    if config and not settings.exists():
        settings.write_text(_settings(config))
    # What was written here and now has a time that is another each time.
    for path in _all(root):
        if os.lstat(path).st_mtime > latest:
            os.utime(path, (latest, latest), follow_symlinks=False)


def _add_units(root: Path) -> None:
    """Where there is systemd, it can be PID 1 instead (`--init /lib/systemd/systemd`), and guestd its service."""
    place = root / "usr/lib/systemd/system"
    if (
        not place.is_dir()
        or (place / "guestd.service").exists()
        or (root / "etc/systemd/system/guestd.service").exists()
    ):
        return
    for unit in sorted((_ROOT / "systemd").glob("*.s*")):
        if not unit.is_file():
            continue
        shutil.copyfile(unit, place / unit.name)
        (place / unit.name).chmod(0o644)
        for line in unit.read_text().splitlines():
            if line.startswith("WantedBy="):
                wants = place / f"{line.partition('=')[2].strip()}.wants"
                wants.mkdir(exist_ok=True)
                (wants / unit.name).symlink_to(f"../{unit.name}")


def _all(root: Path) -> Iterator[str]:
    yield str(root)
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            yield os.path.join(folder, name)


def _folder(root: Path, name: str) -> Path:
    """In a root whose links are for somebody who is in it."""
    at = root
    for part in name.split("/"):
        at /= part
        if at.is_symlink():
            at = root / os.readlink(at).lstrip("/")
        if not at.is_dir():
            at.mkdir(parents=True)
            at.chmod(_MODES.get(name, 0o755))
    return at


def _settings(config: dict[str, Any]) -> str:
    """What a container engine would have given to the image's program, said to guestd. JSON's strings are TOML's."""
    lines = ["# From the image that this machine was made of."]
    argv = [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
    if argv[:1] == [INIT]:
        argv = argv[argv.index("--") + 1 :] if "--" in argv else []
    env = dict(each.split("=", 1) for each in config.get("Env") or () if "=" in each)
    if user := (config.get("User") or "").partition(":")[0]:
        lines.append(f"user = {json.dumps(user)}")
    if env:
        lines.append("[env]")
        lines += [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in env.items()]
    if argv:
        lines.append("[workload]")
        lines.append(f"command = {json.dumps(argv)}")
        if config.get("WorkingDir"):
            lines.append(f"cwd = {json.dumps(config['WorkingDir'])}")
    return "\n".join(lines) + "\n"


def guestd(*, grpc: bool = True) -> Path:
    """/opt/guestd of this checkout, made by image/opt; the same checkout, on the same Python, has it made once."""

    def make(place: Path) -> None:
        say("making /opt/guestd (once for each version of it)")
        run(
            str(_ROOT / "image/opt"), str(place / "guestd"), "--made-of", str(place / _MADE_OF),
            *(() if grpc else ("--without-grpc",)),
        )  # fmt: skip

    def current(place: Path) -> bool:
        return inputs.unchanged(place / _MADE_OF)

    return cache.keep("opt", cache.named(inputs.of_guestd(), grpc), make, current) / "guestd"
