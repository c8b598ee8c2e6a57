"""The arguments of the commands about files, and what their help says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guestd.ctl import values
from guestd.ctl.arguments import give_up, of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    Command = Callable[[str, str, str], argparse.ArgumentParser]

CP = r"""\ Copy files and folders between here and the guest. A path of the guest's begins with a colon; one that is
not absolute is below the workspace.

  guestctl cp notes.txt :                       into the workspace
  guestctl cp :out/report.pdf .                 out of the guest
  guestctl cp src :/opt                         the folder: /opt/src, or as /opt if there is none yet
  guestctl cp src/. :/opt                       what is in it
  guestctl cp a b c :in/                        several, into a folder that is there
  guestctl cp :log.txt - | less                 a file as it is; a folder as a tar archive
  tar c . | guestctl cp - :in                   an archive into a folder that is there, unpacked
  guestctl cp - :notes.txt < notes              anything else into a file

Modes, times, symlinks, hard links and holes are kept. A lost connection is waited for, and the copy goes on where it
was. Nothing has its name before it is whole."""

WATCH = """\
What happens to files below a folder of the guest's, one event a line, until Ctrl+C.

  guestctl watch src                            all of it, but .git and node_modules
  guestctl watch --ignore '*.pyc' --ignore .git .
  guestctl --json watch /etc/hosts              one file, for programs

A lost connection is waited for. After it, and where there were more events than could be told, comes `rescan`, and a
listing of what is there follows it."""


def add(command: Command) -> None:
    """All of them."""
    cp = command("cp", CP, "guestctl cp [OPTIONS] SRC… DST")
    cp.add_argument("paths", nargs="+", metavar="SRC… DST", help="`:PATH` is in the guest; `-` is a pipe")
    cp.add_argument(
        "--user", type=of(values.name_or_number), metavar="U", help="whose rights count in the guest"
    )
    cp.add_argument(
        "-a", "--archive", action="store_true",
        help="keep owners, set-uid and set-gid bits too; for root on the receiving side",
    )  # fmt: skip
    cp.add_argument(
        "-L", "--follow-link", action="store_true", help="a SRC that is a symlink stands for what it names"
    )
    cp.add_argument(
        "--parents", action="store_true", help="make missing folders on the way to DST in the guest"
    )
    cp.add_argument(
        "--digest", choices=("sha256", "blake2b", "none"), default="sha256",
        help="what each file, and each archive, is checked by (default: sha256)",
    )  # fmt: skip
    give_up(cp)
    cp.add_argument("-q", "--quiet", action="store_true", help="no progress, also on a terminal")
    watch = command("watch", WATCH, "guestctl watch PATH [--ignore GLOB]… [--no-recursive]")
    watch.add_argument("path", metavar="PATH", help="in the guest, with or without a colon")
    watch.add_argument(
        "--ignore", action="append", metavar="GLOB",
        help="names, or paths below PATH, that are not watched (default: .git and node_modules)",
    )  # fmt: skip
    watch.add_argument("--no-ignore", action="store_true", help="watch .git and node_modules too")
    watch.add_argument("--no-recursive", action="store_true", help="only what is in PATH itself")
    watch.add_argument("--user", type=of(values.name_or_number), metavar="U", help="whose rights count")
    give_up(watch)
