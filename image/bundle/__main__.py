"""`image/opt DIR`: makes a directory that is /opt/guestd in an image.

Promises. It needs nothing of the image it is copied into: no Python, no C library, no file but the kernel's. It is made
whole or not at all: DIR appears when everything in it has been imported once by its own interpreter, with not one
library from outside. The same checkout, interpreter and packages give the same bytes; the digest printed at the end
says whether they did. What is in it, and how large that is, is printed as a table.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import finish
import libraries
import notices
import packages
import python
import sizes
from errors import CannotBuild

ROOT = Path(__file__).resolve().parents[2]
FAILED = 125


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="image/opt", description="Make DIR what an image has as /opt/guestd."
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="must not exist, or be one that image/opt made")
    parser.add_argument("--python", default="/usr/bin/python3", help="the interpreter that goes into it")
    parser.add_argument(
        "--without-grpc",
        action="store_true",
        help="leave out the gRPC half of OTLP (a third of the size): telemetry then leaves by HTTP",
    )
    parser.add_argument(
        "--prefix",
        default="/opt/guestd",
        help="what DIR is called in the image (/opt/guestd): a second one is what `guestctl upgrade --` takes",
    )
    parser.add_argument(
        "--made-of",
        metavar="FILE",
        type=Path,
        help="write there, as sha256sum does, which files of this machine went into it: with others it is another one",
    )
    arguments = parser.parse_args()
    try:
        if arguments.made_of and not arguments.made_of.absolute().parent.is_dir():
            raise CannotBuild(
                f"--made-of {arguments.made_of}: there is no folder for it; make it, or name another"
            )
        taken = _make(
            arguments.dir.resolve(), prefix=_checked(arguments.prefix), grpc=not arguments.without_grpc
        )
        if arguments.made_of:
            finish.name_sources(arguments.made_of, taken)
    except CannotBuild as error:
        print(f"image/opt: {error}", file=sys.stderr)
        return FAILED
    except subprocess.CalledProcessError as error:
        print(f"image/opt: {' '.join(map(str, error.cmd))} ended with {error.returncode}:", file=sys.stderr)
        print(f"{error.stdout or ''}{error.stderr or ''}", file=sys.stderr)
        return FAILED
    return 0


def _checked(prefix: str) -> str:
    """The kernel takes it from the first line of a script, and people from a COPY."""
    if not re.fullmatch(r"(/[\w.+-]+)+", prefix) or len(prefix) > 60 or "/.." in prefix:
        raise CannotBuild(
            f"--prefix {prefix}: expected an absolute path of at most 60 letters, digits and . + - _"
        )
    return prefix


def _make(target: Path, *, prefix: str, grpc: bool) -> list[Path]:
    """Returns the files of this machine that it was made of."""
    if target.exists() and any(target.iterdir()) and not (target / "bin" / "guestd").exists():
        raise CannotBuild(f"{target} is there, and nothing that image/opt made: remove it, or name another")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, so that the last step is a rename.
    with tempfile.TemporaryDirectory(prefix=".guestd-opt-", dir=target.parent) as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir()
        interpreter, standard = python.copy(tree)
        site = packages.install(tree, ROOT, prefix, grpc=grpc)
        linker, copied = libraries.copy(tree, interpreter, prefix)
        notices.write(tree, ROOT, site, [interpreter, *copied])
        finish.prove(tree, linker, grpc=grpc)
        finish.compile_all(tree, prefix)
        finish.settle(tree)
        sizes.show(tree)
        digest = finish.digest(tree)
        if target.exists():
            os.rename(target, Path(scratch) / "old")
        os.rename(tree, target)
        # What was made for a temporary directory's owner alone is for everybody.
        os.chmod(target, 0o755)
    print(f"sha256:{digest}  {target}")
    return [interpreter, *standard, *copied]


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
