"""Packages of Debian's, unpacked: a kernel, the vsock device. apt checks the signatures of all of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from image.vm import cache
from image.vm.failure import Failure, find, run, say

MIRROR = "http://deb.debian.org/debian"
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
KERNEL = "linux-image-cloud-amd64"
_KERNELS = "linux-image-"


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
    try:
        return _unpack(package, name, version, options)
    except Failure:
        if os.geteuid() and not options:
            raise
        # Lists of another day: the mirrors no longer have what those name.
        _update(options)
        name, newer = _newest(package, options)
        if newer == version:
            raise
        return _unpack(package, name, newer, options)


def _unpack(package: str, name: str, version: str, options: list[str]) -> Path:
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
            _update(options)
    else:
        raise Failure(f"Debian has no package {package}")
    fields = dict(line.split(": ", 1) for line in told.splitlines() if ": " in line and line[0] != " ")
    if package.startswith(_KERNELS):
        # One without a version in its name is empty, and depends on the one of today's version.
        for each in fields.get("Depends", "").split(", "):
            if each.startswith(_KERNELS):
                return each.split()[0], fields["Version"]
    return package, fields["Version"]


def _update(options: list[str]) -> None:
    """One at a time: apt refuses a second one."""
    with cache.locked("apt"):
        run("apt-get", *options, "update", "-qq")


def _lists(suite: str) -> list[str]:
    """Options of apt's with which it knows that suite and nothing else, and leaves no mark."""
    place = cache.folder() / "apt" / suite
    (place / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (place / "sources.list").write_text(f"deb [signed-by={_KEYS}] {MIRROR} {suite} main\n")
    settings = {
        "Dir::Etc::sourcelist": place / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": place / "lists", "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": "",
        # What is installed here is no source of anything.
        "Dir::State::status": "/dev/null", "Acquire::Languages": "none",
    }  # fmt: skip
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
