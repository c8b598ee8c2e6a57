"""Images to build on, where no registry can be asked: made of Debian's packages, under the names that FROM asks for.

What they are made of is in the cache that machines are made from too (image/vm/cache.py): made once, checked by its
digest, one maker at a time. How this machine reaches Debian's mirror and the package indexes (mirror, proxy,
certificates) goes into the image, not into any file of the project.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from image.vm import base, cache, debian
from image.vm.failure import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.engine import Engine

_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_THERE = "/etc/ssl/machine.crt"


def plain_debian(engine: Engine, name: str, suite: str) -> None:
    """Gives the engine an image `name`: Debian's `suite`, as small as debootstrap makes it."""
    archive = base.minbase(suite)
    plain = _imported(engine, f"debian-{suite}", archive)
    with tempfile.TemporaryDirectory(prefix="guestd-base-") as context:
        words = _ways_out(Path(context, "files"))
        Path(context, "Dockerfile").write_text(f"FROM {plain}\nCOPY files /\n{words}", encoding="utf-8")
        engine("build", "--tag", name, context)


def unpacked(engine: Engine, suite: str, packages: Sequence[str]) -> str:
    """The name of an image that has the files of these packages of `suite`, none of them set up, and nothing else.

    One of them is to be a busybox: /bin/sh and the commands of a test are links to it.
    """
    with tempfile.TemporaryDirectory(prefix="guestd-base-") as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir()
        for package in packages:
            run("cp", "-a", f"{debian.unpacked(package, suite)}/.", tree)
        # What base-files would have made in a merged /usr.
        for name in ("bin", "lib", "lib64", "sbin"):
            if not (tree / name).exists() and (tree / "usr" / name).exists():
                (tree / name).symlink_to(f"usr/{name}")
        busybox = next(path for path in (tree / "bin/busybox", tree / "usr/bin/busybox") if path.exists())
        (tree / "bin").mkdir(exist_ok=True)
        for command in ("sh", "cat", "echo", "env", "id", "ls", "sleep", "true"):
            (tree / "bin" / command).symlink_to(Path("/") / busybox.relative_to(tree))
        archive = Path(scratch) / "image.tar"
        # The same packages are the same image: no time of today's in it.
        run("tar", "--sort=name", "--mtime=@0", "-C", tree, "-cf", archive, ".")
        return _imported(engine, f"{suite}-{'-'.join(packages)}", archive)


def _imported(engine: Engine, name: str, archive: Path) -> str:
    """The image of an archive; an older one of that name goes."""
    image = f"guestd-tests/{name}:{cache.digest(archive)[:16]}"
    there = engine("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"guestd-tests/{name}").split()
    if image not in there:
        engine("import", str(archive), image)
    for older in set(there) - {image}:
        engine.run("image", "rm", older)
    return image


def _archives() -> list[str]:
    """Lines of a sources.list for the archives of Debian's own that this machine has; the release before updates."""
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages",
         "Origin: Debian"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    lines = sorted(set(told), key=lambda line: (len(line.split()[1]), line))
    assert lines, "apt knows no archive of Debian's: apt-get update"
    return [f"deb {line}" for line in lines]


def _ways_out(files: Path) -> str:
    """Writes what goes into the image; returns the lines of a Dockerfile for what goes into its environment."""
    apt = files / "etc" / "apt"
    (apt / "apt.conf.d").mkdir(parents=True)
    (apt / "sources.list").write_text("".join(f"{line}\n" for line in _archives()))
    told = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
    ways = [line for line in told.splitlines() if line.startswith("Acquire::http")]
    (apt / "apt.conf.d" / "80machine").write_text("".join(f"{line}\n" for line in ways))
    for name in ("/etc/pip.conf", "/etc/npmrc"):
        if os.path.exists(name):
            shutil.copyfile(name, files / "etc" / Path(name).name)
    environment = {
        name: value for name, value in os.environ.items()
        if name.lower().endswith("_proxy") or name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "NPM_CONFIG_REGISTRY")
    }  # fmt: skip
    if os.path.exists(_CERTIFICATES):
        (files / "etc" / "ssl").mkdir()
        shutil.copyfile(_CERTIFICATES, files / _THERE.lstrip("/"))
        environment |= dict.fromkeys(("PIP_CERT", "NODE_EXTRA_CA_CERTS", "NPM_CONFIG_CAFILE"), _THERE)
    return "".join(f"ENV {name}={value}\n" for name, value in sorted(environment.items()))
