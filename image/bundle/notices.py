"""NOTICE and licenses/: what was bundled, in which version, and under what terms."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sysconfig
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING

from packages import version

if TYPE_CHECKING:
    from collections.abc import Iterable

_HEAD = """\
guestd {version} is under the Apache License 2.0: licenses/guestd.

This directory also has in it what is listed below, as it was published, but for symbols that were stripped, byte code
in place of Python source, and the name of its dynamic linker in the interpreter. The terms of a Python package are in
its directory lib/python*/site-packages/NAME-VERSION.dist-info, those of the others in licenses/NAME. The source of what
comes from Debian is Debian's source package of that version: apt-get source NAME=VERSION, or snapshot.debian.org.

"""


def write(tree: Path, root: Path, site: Path, files: Iterable[Path]) -> None:
    """`files`: the interpreter and the libraries, where they were copied from."""
    licenses = tree / "licenses"
    licenses.mkdir()
    shutil.copyfile(root / "LICENSE", licenses / "guestd")
    shutil.copyfile(Path(sysconfig.get_paths()["stdlib"], "LICENSE.txt"), licenses / "python")
    lines = {f"python {platform.python_version()}: PSF-2.0"}
    for metadata in site.glob("*.dist-info/METADATA"):
        about = HeaderParser().parsestr(metadata.read_text(encoding="utf-8"))
        if about["Name"] != "guestd":
            # A field of one line; some have put the whole text of their licence in it.
            terms = (
                about["License-Expression"]
                or about["License"]
                or _classified(about.get_all("Classifier", []))
            )
            lines.add(f"{about['Name']} {about['Version']}: {terms.strip().splitlines()[0]}")
    for file in files:
        name, number = _debian_package(file)
        if not name:
            lines.add(f"{file.name}: of this machine's own making, {file}")
            continue
        lines.add(f"{name} {number}: licenses/{name}")
        shutil.copyfile(f"/usr/share/doc/{name}/copyright", licenses / name)
    text = _HEAD.format(version=version(root)) + "\n".join(sorted(lines, key=str.lower)) + "\n"
    (tree / "NOTICE").write_text(text, encoding="utf-8")


def _classified(classifiers: Iterable[str]) -> str:
    named = [words.rsplit(" :: ", 1)[1] for words in classifiers if words.startswith("License ::")]
    return ", ".join(named) or "see there"


def _debian_package(file: Path) -> tuple[str, str]:
    """The package that a file belongs to, and its version; empty where it is no package's."""
    if shutil.which("dpkg-query") is None:
        return "", ""
    # The directories of a merged /usr are known by either name.
    real = str(file.resolve())
    for name in (real, real.removeprefix("/usr")):
        found = subprocess.run(["dpkg-query", "-S", name], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            package = found.stdout.split(": ")[0].split(",")[0]
            about = subprocess.run(
                ["dpkg-query", "-W", "-f", "${Package} ${Version}", package],
                capture_output=True,
                text=True,
                check=True,
            )
            package, _, number = about.stdout.partition(" ")
            return package, number
    return "", ""
