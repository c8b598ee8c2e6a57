"""What a terminal shows that was attached in the middle: the same, cell by cell, as one that watched from the start.

xterm.js is the judge (`tests/support/screen/`). It watches recordings of real programs and made-up streams; at random
places guestd's model of the terminal writes a restore for new terminals, clean ones and dirty ones. From there on
nobody may be able to tell them from the one that watched, however the program goes on.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.support.screen import recording, streams
from tests.support.screen.oracle import Oracle
from tests.support.screen.trial import DEEP_DIRT, DIRT, pieces, trial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.screen.recording import Step

CUTS = 6


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as process:
        yield process


# --------------------------------------------------------------------------------------------------- the judge itself

NOTICED = {
    "a character": b"x",
    "a space in a colour": b"\x1b[41m \x1b[0m\r",
    "a colour": b"\x1b[31ma\x1b[0m",
    "a true colour": b"\x1b[38;2;1;2;3ma\x1b[0m",
    "another kind of underline": b"\x1b[4:3ma\x1b[0m",
    "an underline's colour": b"\x1b[4;58;5;9ma\x1b[0m",
    "an overline": b"\x1b[53ma\x1b[0m",
    "a link": b"\x1b]8;;http://a/\x07a\x1b]8;;\x07",
    "a wide character": "日".encode(),
    "a combining mark": "a\u0301".encode(),
    "the cursor's column": b"\x1b[3G",
    "the cursor's row": b"\n",
    "a wrap that is pending": b"\x1b[20Gx",
    "a hidden cursor": b"\x1b[?25l",
    "the cursor's shape": b"\x1b[4 q",
    "the colour of what comes next": b"\x1b[32m",
    "margins": b"\x1b[2;4r\x1b[H",
    "origin mode": b"\x1b[?6h",
    "insert mode": b"\x1b[4h",
    "no wrapping": b"\x1b[?7l",
    "newline mode": b"\x1b[20h",
    "reverse wrapping": b"\x1b[?45h",
    "cursor keys": b"\x1b[?1h",
    "the keypad": b"\x1b=",
    "pasting": b"\x1b[?2004h",
    "focus": b"\x1b[?1004h",
    "the mouse": b"\x1b[?1002h",
    "the mouse's words": b"\x1b[?1006h",
    "keys in kitty's way": b"\x1b[>1u",
    "keys in xterm's way": b"\x1b[>4;2m",
    "a set of characters": b"\x1b(0",
    "a set that is not in use": b"\x1b)0",
    "the set in use": b"\x0e",
    "a saved cursor": b"\x1b[3;3H\x1b7\x1b[H",
    "a tab stop": b"\x1b[5G\x1bH\r",
    "no tab stops": b"\x1b[3g",
    "a title": b"\x1b]2;a\x07",
    "a title put by": b"\x1b]2;a\x07\x1b[22;2t\x1b]2;\x07",
    "the palette": b"\x1b]4;1;#010203\x07",
    "the background": b"\x1b]11;#010203\x07",
    "the other screen": b"\x1b[?1049h",
    "what is below the other screen": b"a\x1b[?1049h\x1b[H",
    "a line that goes on in the next": b"\x1bc" + b"x" * 21,
    "scrollback": b"a\n\n\n\n\n\n\x1b[H",
}
#: Where it takes more than an empty terminal to compare with.
OTHERWISE = {
    "what is below the other screen": b"\x1b[?1049h\x1b[H",
    "a line that goes on in the next": b"x" * 20 + b"\r\nx",
}


@pytest.mark.parametrize("name", NOTICED)
def test_the_judge_sees(oracle: Oracle, name: str) -> None:
    """Each thing that two terminals may differ in, by itself."""
    with oracle.screen(20, 5) as one, oracle.screen(20, 5) as other:
        one.feed(NOTICED[name])
        other.feed(OTHERWISE.get(name, b""))
        assert one.differences(one) == []
        assert one.differences(other) != []
        assert other.differences(one) != [] or name == "scrollback"  # which may hold more than was expected
        assert other.differences(other) == []


def test_the_judge_tells_what_is_different(oracle: Oracle) -> None:
    with oracle.screen(20, 5) as one, oracle.screen(20, 5) as other:
        one.feed(b"\x1b[?25lone two three")
        other.feed(b"one \x1b[1;34mtow\x1b[0m three")
        assert one.differences(other) == [
            "hidden: true was expected, it is false",
            'row 0, columns 4-6: "two" was expected, it is "tow" (in colour 4, bold)',
        ]


def test_what_nobody_can_see_makes_no_difference(oracle: Oracle) -> None:
    """A space that was written and one that was erased; the colour of a letter that is not there."""
    with oracle.screen(20, 5) as one, oracle.screen(20, 5) as other:
        one.feed(b"a   b   \x1b[H")
        other.feed(b"\x1b[1;31m        \r\x1b[0ma\x1b[4C\x1b[Db\x1b[H")
        assert one.differences(other) == []


def test_the_judge_keeps_what_the_terminal_answers(oracle: Oracle) -> None:
    with oracle.screen(20, 5) as one:
        one.feed(b"\x1b[3;4H\x1b[6n")
        assert one.replies() == b"\x1b[3;4R"
        assert one.replies() == b""


# -------------------------------------------------------------------------------------------------------- real programs


@pytest.mark.parametrize("name", recording.names())
def test_a_program_restored_at_random(oracle: Oracle, name: str) -> None:
    kept = recording.load(name)
    size = sum(len(step) for step in kept.steps if isinstance(step, bytes))
    chance = random.Random(name)
    with trial(oracle, kept.size.columns, kept.size.rows) as on_trial:
        for number, piece in enumerate(pieces(kept.steps, chance.sample(range(size), CUTS))):
            on_trial.play(piece)
            on_trial.late(f"attached {number}", (b"", DIRT, DEEP_DIRT)[number % 3])
            assert on_trial.verdict() == [], f"{name}, after piece {number}"


# ----------------------------------------------------------------------------------------------------- made-up streams


def _restored(oracle: Oracle, steps: list[Step], cut: int, dirt: bytes) -> list[str]:
    with trial(oracle, 14, 6, history=8) as on_trial:
        on_trial.play(steps[:cut])
        on_trial.late("attached", dirt)
        found = on_trial.verdict()
        if not found:
            on_trial.play(steps[cut:])
            found = [f"later {difference}" for difference in on_trial.verdict()]
        return found


@pytest.mark.parametrize("hundred", range(4))
def test_made_up_output_restored_at_random(oracle: Oracle, hundred: int) -> None:
    for seed in range(hundred * 100, hundred * 100 + 100):
        steps = streams.stream(seed, 60, sizes=seed % 2 == 1)
        chance = random.Random(seed)
        cut, dirt = chance.randint(0, 60), chance.choice([b"", DIRT, DEEP_DIRT])
        found = _restored(oracle, steps, cut, dirt)
        assert found == [], f"seed {seed}, cut {cut}: {b''.join(s for s in steps if isinstance(s, bytes))!r}"
