"""The arguments of `guestctl forward`, and what its help says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guestd.ctl import values
from guestd.ctl.arguments import of
from guestd.ctl.forward_spec import parse_spec

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    Command = Callable[[str, str, str], argparse.ArgumentParser]

FORWARD = """\
Listen here, and lead every connection to a program in the guest, until Ctrl+C.

  guestctl forward 3000                         port 3000 here is port 3000 of the guest
  guestctl forward 8080:3000 5432               several at once
  guestctl forward 0:3000                       any free port; prints which
  guestctl forward 127.0.0.1:8080:10.0.0.5:80   other addresses, on either side
  guestctl forward unix:/tmp/app.sock:unix:/run/app.sock

It listens on this machine's loopback unless a host says otherwise. `localhost` in the guest is 127.0.0.1 and ::1. When
the guest is lost, connections break, and new ones wait for it to be back. Each half of a connection ends on its own."""


def add(command: Command) -> None:
    forward = command("forward", FORWARD, "guestctl forward LOCAL:GUEST…")
    forward.add_argument(
        "specs",
        type=of(parse_spec),
        nargs="+",
        metavar="LOCAL:GUEST",
        help="[HOST:]PORT:[HOST:]PORT, or unix:PATH",
    )
    forward.add_argument(
        "--idle",
        type=of(values.seconds),
        metavar="S",
        help="end a connection of which nothing moves for so long",
    )
