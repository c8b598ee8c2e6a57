"""What comes from Debian: a kernel, the vsock device, a root file system. apt checks the signatures of all of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from image.vm import cache
from image.vm.failure import Failure, find, run, say

MIRROR = "http://deb.debian.org/debian"
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
KERNEL = "linux-image-cloud-amd64"
SUITE = "bookworm"
#: In a machine that nobody gave an image: what a shell and a network file system need; systemd for those who want it.
PACKAGES = (
    "ca-certificates", "e2fsprogs", "iproute2", "kmod", "less", "nfs-common", "procps", "systemd-sysv",
    "util-linux",
)  # fmt: skip


def unpacked(package: str, suite: str | None = None) -> Path:
    """A package of Debian's, or what it depends on, unpacked: the folder `root` in the cache.

    `suite`: another one than this machine's, asked through lists of its own: this machine's apt never hears of it.
    """
    options = [] if suite is None else _lists(suite)
    try:
        name, version = _newest(package, options)
    except Failure as failure:
        older = [each for each in cache.kept("debian") if each.name.startswith(f"{package}_")]
        if not older:
            raise
        say(f"{package}: the mirrors were not asked ({str(failure).splitlines()[0]}); taking {older[0].name}")
        return older[0] / "root"

    def make(place: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="guestd-deb-", dir=place) as scratch:
            os.chmod(scratch, 0o777)  # apt downloads as a user of its own
            argv = [find("apt-get"), *options, "download", "-qq", f"{name}={version}"]
            run("sh", "-c", 'cd "$0" && exec "$@"', scratch, *argv)
            (deb,) = Path(scratch).glob("*.deb")
            run("dpkg-deb", "-x", deb, place / "root")

    return cache.keep("debian", f"{package}_{version.replace(':', '%3a')}", make) / "root"


def _newest(package: str, options: list[str]) -> tuple[str, str]:
    """The package that is really meant, and its version."""
    for _ in range(2):
        try:
            told = run("apt-cache", *options, "show", "--no-all-versions", package)
            break
        except Failure:
            # A machine that has never asked its mirrors.
            if os.geteuid() and not options:
                raise
            run("apt-get", *options, "update", "-qq")
    else:
        raise Failure(f"Debian has no package {package}")
    fields = dict(line.split(": ", 1) for line in told.splitlines() if ": " in line and line[0] != " ")
    if package == KERNEL:
        # It is empty, and depends on the one of today's version.
        return fields["Depends"].split(",")[0].split()[0], fields["Version"]
    return package, fields["Version"]


def _lists(suite: str) -> list[str]:
    """Options of apt's with which it knows that suite and nothing else, and leaves no mark."""
    place = cache.folder() / "apt" / suite
    (place / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (place / "sources.list").write_text(f"deb [signed-by={_KEYS}] {MIRROR} {suite} main\n")
    settings = {
        "Dir::Etc::sourcelist": place / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": place / "lists", "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": "",
        "Acquire::Languages": "none",
    }  # fmt: skip
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def bootstrap(suite: str = SUITE, packages: tuple[str, ...] = PACKAGES) -> Path:
    """A root file system by debootstrap, as a tar. Made once: what Debian has changed since is in the next one."""
    if os.geteuid() != 0:
        raise Failure("debootstrap needs root; give a container image (a saved tar) or a folder instead")

    def make(place: Path) -> None:
        say(f"making a Debian {suite} with debootstrap (once; about a minute)")
        root = Path(tempfile.mkdtemp(prefix=".guestd-debootstrap-", dir=place))
        try:
            run("debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite, root, MIRROR)
            # What is different in each run, or of no use to a machine that is thrown away.
            for name in (
                "var/cache/apt/archives", "var/lib/apt/lists", "var/log", "var/cache/debconf", "usr/share/doc",
                "usr/share/man", "usr/share/locale", "usr/share/info",
            ):  # fmt: skip
                _empty(root / name)
            for name in (
                "etc/machine-id",
                "etc/hostname",
                "var/lib/dbus/machine-id",
                "var/cache/ldconfig/aux-cache",
            ):
                (root / name).unlink(missing_ok=True)
            (root / "etc/machine-id").touch()
            run(
                "tar", "--numeric-owner", "--sort=name", "--xattrs", "--xattrs-include=*", "-C", root, "-cf",
                place / "root.tar", ".",
            )  # fmt: skip
        finally:
            shutil.rmtree(root)

    return cache.keep("debootstrap", f"{suite}-{cache.named(packages)}", make) / "root.tar"


def _empty(folder: Path) -> None:
    if folder.is_dir():
        for each in folder.iterdir():
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()
