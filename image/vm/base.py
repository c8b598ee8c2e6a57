"""Root file systems by debootstrap, as tars: a Debian as small as it can be, and one with packages on top of that.

Each is made once for each point release of its suite, by this very recipe. Whoever needs a Debian of that suite shares
the small one: the machines, and the images that the tests make containers of.
"""

from __future__ import annotations

import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from image.vm import cache
from image.vm.debian import MIRROR
from image.vm.failure import Failure, find, run, say

if TYPE_CHECKING:
    from collections.abc import Callable

SUITE = "bookworm"
#: In a machine that nobody gave an image: what a shell and a network file system need; systemd for those who want it.
PACKAGES = (
    "ca-certificates", "e2fsprogs", "iproute2", "kmod", "less", "nfs-common", "procps", "systemd-sysv",
    "util-linux",
)  # fmt: skip
_KIND = "debootstrap"
_RECIPE = Path(__file__).with_name("base.sh")
_ANSWER_SECONDS = 20.0


def minbase(suite: str = SUITE) -> Path:
    """A Debian that has apt and what every Debian has, and nothing else."""
    find("debootstrap")

    def make(place: Path) -> None:
        say(f"making a Debian {suite} with debootstrap (once; about a minute)")
        _run(place, "minbase", suite, mirror(suite), place / "root.tar")

    return _keep(f"{suite}-minbase", suite, make)


def bootstrap(suite: str = SUITE, packages: tuple[str, ...] = PACKAGES) -> Path:
    """The same with packages, and without what a machine has no use for: manuals, translations, logs."""

    def make(place: Path) -> None:
        base = minbase(suite)
        say(f"installing {len(packages)} packages in it, and what they need")
        _run(place, "on", base, place / "root.tar", *packages)

    return _keep(f"{suite}-{cache.named(packages)}", suite, make)


def mirror(suite: str) -> str:
    """Where this machine's own apt has that suite from; else Debian's."""
    try:
        told = run(
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(CODENAME)",
            "Created-By: Packages",
            "Origin: Debian",
        )
    except Failure:
        return MIRROR
    found = sorted(
        uri for uri, _, codename in (line.partition(" ") for line in told.splitlines()) if codename == suite
    )
    return found[0].rstrip("/") if found else MIRROR


def _keep(name: str, suite: str, make: Callable[[Path], None]) -> Path:
    """As it is kept for today's point release; where the mirror does not answer, as it was kept last."""
    recipe = cache.named(cache.digest(_RECIPE))
    try:
        release = _release(suite)
    except (OSError, urllib.error.URLError) as error:
        older = [each for each in cache.kept(_KIND) if each.name.startswith(f"{name}-{recipe}-")]
        if not older:
            raise Failure(f"Debian's mirror {mirror(suite)} cannot be asked for {suite}: {error}") from None
        say(f"{name}: the mirror was not asked ({error}); taking {older[0].name}")
        cache.hold(older[0])
        return older[0] / "root.tar"
    if os.geteuid() != 0:
        raise Failure("debootstrap needs root; give a container image (a saved tar) or a folder instead")
    while not cache.hold(found := cache.keep(_KIND, f"{name}-{recipe}-{release}", make)):
        pass
    # What is two releases old, or of two recipes ago, is nobody's any more.
    for old in [each for each in cache.kept(_KIND) if each.name.startswith(f"{name}-")][2:]:
        cache.drop(old)
    return found / "root.tar"


def _release(suite: str) -> str:
    """What the mirror has of it today, by the digest of its index: another one for each point release."""
    with urllib.request.urlopen(f"{mirror(suite)}/dists/{suite}/Release", timeout=_ANSWER_SECONDS) as answer:
        return cache.named(answer.read().decode("utf-8", "replace"))


def _run(place: Path, *words: str | Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".guestd-base-", dir=place) as scratch:
        run(
            "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "sh", _RECIPE, *words,
            env={**os.environ, "SCRATCH": scratch},
        )  # fmt: skip
