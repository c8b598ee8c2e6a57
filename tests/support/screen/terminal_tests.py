"""vttest, played through its menus: what terminals have been judged by for decades.

Its pages look much the same to a program that waits for text, so it is waited for by quiet: for recordings alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from tests.support.screen.record import LocalPerson

QuietPlay: TypeAlias = "Callable[[LocalPerson], Generator[None]]"

#: The entries that need no other machine, no printer and no keys of DEC's: what is chosen, menu by menu.
ENTRIES = {
    "vttest_cursor": ["1"],
    "vttest_screen": ["2"],
    "vttest_sets": ["3"],
    "vttest_double": ["4"],
    "vttest_vt52": ["7"],
    "vttest_vt102": ["8"],
    "vttest_colours": ["11", "6"],
    "vttest_alternate": ["11", "8", "7"],
}


def _pages(person: LocalPerson) -> Generator[None]:
    """All pages that follow, until a menu asks again."""
    for _ in range(60):
        person.settle()
        yield
        if person.shows("Enter choice number"):
            return
        person.type("\r")
    raise AssertionError("vttest goes on and on")


def _entry(choices: list[str]) -> QuietPlay:
    def play(person: LocalPerson) -> Generator[None]:
        person.prompt()
        person.run("vttest", "Enter choice number")
        for choice in choices:
            person.type(f"{choice}\r")
            person.settle()
        # Where the last choice was of one more menu, all that it offers.
        offered = [number for number in range(1, 10) if person.shows(rf"^ +{number}\. ")]
        if not person.shows("Enter choice number"):
            yield from _pages(person)
        else:
            for number in offered:
                person.type(f"{number}\r")
                yield from _pages(person)
        for _ in choices:
            person.type("0\r")
            person.settle()

    return play


PLAYS: dict[str, QuietPlay] = {name: _entry(choices) for name, choices in ENTRIES.items()}
