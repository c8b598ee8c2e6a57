"""`python -m bench [--json] [NAME…]`: measure, print, and end with 1 when a budget is missed."""

from __future__ import annotations

import argparse
import sys

from bench.lab import QUICK, Amounts, Lab
from bench.peers import install
from bench.report import Line, table
from bench.rows import ROWS, UnknownRow, chosen


def main() -> int:
    asked = _parser().parse_args()
    if asked.list:
        for row in ROWS:
            print(f"{row.name:16} {row.budget or '–'!s:20} {row.what}")
        return 0
    if asked.install_peers and not install.every():
        print("bench: not every peer could be installed; the rows will say which are absent", file=sys.stderr)
    try:
        rows = chosen(asked.names)
    except UnknownRow as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    lines: list[Line] = []
    with Lab(QUICK if asked.quick else Amounts(), with_peers=not asked.no_peers) as lab:
        for row in rows:
            print(f"bench: measuring {row.name}: {row.what}", file=sys.stderr)
            lines.append(row.line(lab))
            if asked.json:
                print(lines[-1].to_json(), flush=True)
    if not asked.json:
        print(table(lines))
    return 0 if all(line.ok for line in lines) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure guestd against floors and peers, in one run (docs/benchmarks.md).",
        epilog="Exit status: 0 every budget kept, 1 one missed or not measured, 2 wrong usage.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="rows to measure, or a pattern like 'exec.*'"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    parser.add_argument("--list", action="store_true", help="print the rows and their budgets, and end")
    parser.add_argument(
        "--quick", action="store_true", help="tiny amounts: shows that it works, the figures mean nothing"
    )
    parser.add_argument("--no-peers", action="store_true", help="do not start the peers")
    parser.add_argument("--install-peers", action="store_true", help="install the peers first, then measure")
    return parser


if __name__ == "__main__":
    sys.exit(main())
