"""What the things in the cache are made of: by that it is known whether the one that is there is the one wanted.

Two kinds. What a checkout has is named: another content is another thing, beside the first. What the machine at hand
has (its interpreter, its C library) is found out in the making, so it is written down then, with digests, and looked
at again when the thing is used: one that was made of something else is made anew.
"""

from __future__ import annotations

import os
from pathlib import Path

from image.vm import cache
from image.vm.failure import find

ROOT = Path(__file__).resolve().parents[2]
#: The interpreter of Debian's that image/opt takes.
INTERPRETER = "/usr/bin/python3"
#: Of a checkout, all that image/opt reads.
_GUESTD = ("LICENSE", "guestd", "image/bundle", "image/opt", "image/requirements.txt")
#: And all that the machine of `image/try --vm` has besides: the program that makes it, and the units…
_MACHINE = ("image/vm", "systemd")
#: …without the part of that program that starts one which was made.
_STARTS = {"accelerator.py", "herald.py", "machine.py", "qemu.py", "run.py", "sit.py", "vmm.py"}

Sums = list[tuple[str, str]]


def of_guestd(root: Path = ROOT) -> Sums:
    """/opt/guestd, as far as it can be known before it is made. Which Python is meant may be another one tomorrow."""
    return [*_sums(root, files_of_guestd(root)), ("interpreter", os.path.realpath(INTERPRETER)), _time()]


def of_machine(root: Path = ROOT) -> Sums:
    """A machine, beside its /opt/guestd and its Debian."""
    return [*_sums(root, files_of_machine(root)), ("busybox", cache.digest(Path(find("busybox")))), _time()]


def files_of_guestd(root: Path = ROOT) -> list[Path]:
    return _files(root, _GUESTD)


def files_of_machine(root: Path = ROOT) -> list[Path]:
    return [each for each in _files(root, _MACHINE) if each.name not in _STARTS]


def _time() -> tuple[str, str]:
    return "SOURCE_DATE_EPOCH", os.environ.get("SOURCE_DATE_EPOCH", "")


def _sums(root: Path, files: list[Path]) -> Sums:
    return [(str(each.relative_to(root)), cache.digest(each)) for each in files]


def _files(root: Path, places: tuple[str, ...]) -> list[Path]:
    """Of what a checkout has, which Python compiles where it runs."""
    found = (each for place in places for each in ((root / place), *(root / place).rglob("*")))
    return sorted(each for each in found if each.is_file() and "__pycache__" not in each.parts)


def unchanged(made_of: Path) -> bool:
    """Whether each file that is named there (as sha256sum does) is still what it was."""
    for line in made_of.read_text().splitlines():
        expected, _, name = line.partition("  ")
        try:
            if cache.digest(Path(name)) != expected:
                return False
        except OSError:
            return False
    return True
