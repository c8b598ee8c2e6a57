"""Images to build on, where no registry can be asked: made of Debian's packages, under the names that FROM asks for.

Each is kept as an archive in the engine's cache, with its digest beside it; one that is not what it was is made again.
How this machine reaches Debian's mirror and the package indexes (mirror, proxy, certificates) goes into the image, not
into any file of the project.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.engine import CACHE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.engine import Engine

_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_THERE = "/etc/ssl/machine.crt"
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def debian(engine: Engine, name: str, suite: str) -> None:
    """Gives the engine an image `name`: Debian's `suite`, as small as debootstrap makes it."""

    def make(tree: Path) -> None:
        _run("debootstrap", "--variant=minbase", suite, str(tree), _archives()[0].split()[1])
        shutil.rmtree(tree / "var" / "cache" / "apt")
        for directory in ("proc", "sys", "dev"):
            subprocess.run(["umount", "--lazy", "--quiet", tree / directory], check=False)

    plain = _imported(engine, f"debian-{suite}", make)
    with tempfile.TemporaryDirectory(prefix="guestd-base-") as context:
        words = _ways_out(Path(context, "files"))
        Path(context, "Dockerfile").write_text(f"FROM {plain}\nCOPY files /\n{words}", encoding="utf-8")
        engine("build", "--tag", name, context)


def unpacked(engine: Engine, suite: str, packages: Sequence[str]) -> str:
    """The name of an image that has the files of these packages of `suite`, none of them set up, and nothing else.

    One of them is to be a busybox: /bin/sh and the commands of a test are links to it.
    """

    def make(tree: Path) -> None:
        tree.mkdir()
        _download(suite, packages, tree.parent)
        for package in sorted(tree.parent.glob("*.deb")):
            _run("dpkg-deb", "--extract", str(package), str(tree))
        # What base-files would have made in a merged /usr.
        for name in ("bin", "lib", "lib64", "sbin"):
            if not (tree / name).exists() and (tree / "usr" / name).exists():
                (tree / name).symlink_to(f"usr/{name}")
        busybox = next(path for path in (tree / "bin/busybox", tree / "usr/bin/busybox") if path.exists())
        (tree / "bin").mkdir(exist_ok=True)
        for command in ("sh", "cat", "echo", "env", "id", "ls", "sleep", "true"):
            (tree / "bin" / command).symlink_to(Path("/") / busybox.relative_to(tree))

    return _imported(engine, f"{suite}-{'-'.join(packages)}", make)


def _imported(engine: Engine, name: str, make: Callable[[Path], None]) -> str:
    """The image of an archive, which `make` fills a directory for if there is none of that name."""
    # Made by this very text, or made again.
    recipe = _digest(Path(__file__))[:8]
    archive = CACHE / f"{name}-{os.uname().machine}-{recipe}.tar"
    noted = archive.with_suffix(".sha256")
    if not (archive.exists() and noted.exists() and noted.read_text() == _digest(archive)):
        with tempfile.TemporaryDirectory(prefix="guestd-base-") as scratch:
            # In memory: dpkg has every file it unpacks written to the disk before it goes on.
            _run("mount", "-t", "tmpfs", "guestd-base", scratch)
            try:
                tree = Path(scratch) / "tree"
                make(tree)
                made = archive.with_suffix(f".{os.getpid()}")
                _run("tar", "--one-file-system", "-C", str(tree), "-cf", str(made), ".")
                made.rename(archive)
            finally:
                _run("umount", scratch)
            noted.write_text(_digest(archive))
        for older in set(CACHE.glob(f"{name}-{os.uname().machine}-*")) - {archive, noted}:
            older.unlink(missing_ok=True)
    image = f"guestd-tests/{name}:{noted.read_text()[:16]}"
    there = engine("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"guestd-tests/{name}").split()
    if image not in there:
        engine("import", str(archive), image)
    for older in set(there) - {image}:
        engine.run("image", "rm", older)
    return image


def _download(suite: str, packages: Sequence[str], place: Path) -> None:
    """The newest of them in the archive of `suite`, by lists of our own: this machine's apt sees nothing of it."""
    lists = CACHE / "lists" / suite
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    (place / "cache").mkdir()
    source = place / "sources.list"
    source.write_text(f"deb [signed-by={_KEYS}] {_archives()[0].split()[1]} {suite} main\n")
    options = [
        "-qq", "-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={place}/cache",
        "-o", f"Dir::Etc::sourcelist={source}", "-o", "Dir::Etc::sourceparts=-", "-o", "APT::Sandbox::User=root",
        "-o", "APT::Get::List-Cleanup=0", "-o", "Acquire::Languages=none", "-o", "Dir::State::status=/dev/null",
    ]  # fmt: skip
    _run("apt-get", *options, "update")
    _run("apt-get", *options, "download", *packages, cwd=place)


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


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(*command: str, cwd: Path | None = None) -> None:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": path},
    )  # fmt: skip
    said = f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{said}"
