"""What a shell says about itself in its output: which commands ran where, how they ended, the title, the directory.

`Marks` is shown the output as it passes, at any split, and keeps a bounded list of commands, each with the bytes it
printed. The marks are OSC 133 (A: a prompt begins, B: it ends, C: a command begins, D: it has ended), OSC 7 (the
directory), OSC 0 and 2 (the title). Pure.

Anything can print these bytes: a nested shell, a program, a file that is shown. So nothing here is taken for more
than a hint, everything is bounded, and texts hold no control characters. What makes no sense where it stands is
passed over: an end without a beginning, a beginning while a command runs. A prompt while one runs ends it,
and how it went is then not known.

Bulk output has no marks: a chunk without an OSC costs one search for two bytes.
"""

from __future__ import annotations

import re
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The oldest commands are forgotten beyond these.
COMMANDS_KEPT = 1000
#: Of a command line. The shells' side tells no more.
TEXT_MAX = 4096
TITLE_MAX = 256
#: As the kernel has it.
DIRECTORY_MAX = 4096
#: Of a line or a path as it is told, percent-encoded. The shells' side keeps to it.
TOLD_MAX = 8000
#: Of a sequence that has begun and not ended, so much is remembered; the rest is cut out of it.
HELD_MAX = 8192

_START = b"\x1b]"
_ESCAPE, _BEL, _BACKSLASH = 0x1B, 0x07, 0x5C
#: One of ours, or what may become one when more has come.
_OURS = re.compile(rb"\x1b\](?:133;|[027];|(?:1|13|133|[027])?\Z)")
#: A sequence ends with BEL or with ESC and a backslash; a bare ESC, CAN and SUB break it off.
_END = re.compile(rb"[\x07\x1b\x18\x1a]")
_ENCODED = re.compile(rb"%([0-9A-Fa-f]{2})")
#: Where a cut went through one of them.
_CUT = re.compile(rb"%[0-9A-Fa-f]?\Z")
_EXIT = re.compile(rb"[0-9]{1,3}")
#: What could act on the terminal of whoever is shown a text: C0, DEL and C1.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f]")
_UNSAFE_IN_LINES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Command:
    """A command line that was run. Times are wall and monotonic seconds; `start` and `end` are offsets in the
    terminal's stream, around what it printed. What is not known, or not yet, is None; a `text` that was not told
    is empty.
    """

    __slots__ = (
        "directory", "end", "ended", "ended_monotonic", "exit", "n", "start", "started", "started_monotonic", "text",
    )  # fmt: skip

    def __init__(
        self, n: int, text: str, directory: str | None, start: int, started: float, started_monotonic: float
    ) -> None:
        self.n = n
        self.text = text
        self.directory = directory
        self.start = start
        self.started = started
        self.started_monotonic = started_monotonic
        self.end: int | None = None
        self.ended: float | None = None
        self.ended_monotonic: float | None = None
        self.exit: int | None = None

    def __repr__(self) -> str:
        return f"<Command {self.n} {self.text!r} {self.start}..{self.end} exit {self.exit}>"

    def to_map(self) -> dict[str, Any]:
        """As the wire has it."""
        duration = None
        if self.ended_monotonic is not None:
            duration = self.ended_monotonic - self.started_monotonic
        return {
            "n": self.n, "text": self.text, "cwd": self.directory, "started_at": self.started, "ended_at": self.ended,
            "duration": duration, "exit": self.exit, "from": self.start, "to": self.end,
        }  # fmt: skip


class Marks:
    """See the module."""

    __slots__ = (
        "_commands", "_doubtful", "_held", "_held_at", "_host", "_monotonic", "_next", "_wall", "count", "directory",
        "running", "title",
    )  # fmt: skip

    def __init__(self, host: str = "") -> None:
        """With a `host`, what shells on other machines say of their directories is passed over."""
        self.title: str | None = None
        #: Of the shell, as it last said.
        self.directory: str | None = None
        #: The command that runs now.
        self.running: Command | None = None
        #: How many commands there have been; the last one's number.
        self.count = 0
        self._host = host
        self._commands: deque[Command] = deque(maxlen=COMMANDS_KEPT)
        # A sequence that has begun, as far as it has come, and where.
        self._held = b""
        self._held_at = 0
        # The offset of what comes next, once anything has come.
        self._next: int | None = None
        # Something is missing since the running command began: the next end may be another's.
        self._doubtful = False
        self._wall = self._monotonic = 0.0

    @property
    def commands(self) -> list[Command]:
        """The newest, oldest first; the last one may still run."""
        return list(self._commands)

    def feed(self, offset: int, chunk: bytes, wall: float, monotonic: float) -> None:
        """Output that has come, and when."""
        if offset != self._next and self._next is not None:
            self.lost()
        self._next = offset + len(chunk)
        data, first = chunk, offset
        if self._held:
            data, first, self._held = self._held + chunk, self._held_at, b""
        elif _START not in chunk and not chunk.endswith(b"\x1b"):
            return
        self._wall, self._monotonic = wall, monotonic
        self._search(data, self._next - len(data), first)

    def recall(self, commands: list[dict[str, Any]], title: str | None, directory: str | None) -> None:
        """Know again what another knew: of its newest commands `to_map`, and `started_mono`."""
        self.title, self.directory = title, directory
        for told in commands:
            command = Command(
                told["n"], told["text"], told["cwd"], told["from"], told["started_at"], told["started_mono"]
            )
            command.end, command.ended, command.exit = told["to"], told["ended_at"], told["exit"]
            if told["duration"] is not None:
                command.ended_monotonic = command.started_monotonic + told["duration"]
            self._commands.append(command)
            self.count = command.n
            self.running = command if command.end is None else None
        # An end that came in between may have been another's.
        self._doubtful = False

    def lost(self) -> None:
        """Output is missing between what has come and what comes next."""
        self._held = b""
        self._next = None
        self._doubtful = self.running is not None

    # ----------------------------------------------------------------------------------- finding

    def _search(self, data: bytes, base: int, first: int) -> None:
        """`base` is the offset of `data`, counted from its end: the middle of a sequence that it begins with may
        have been cut out. `first` is the offset of its first byte.
        """
        at = 0
        while (ours := _OURS.search(data, at)) is not None:
            at = ours.start()
            found = _END.search(data, at + 2)
            if found is None:
                break
            stop = found.start()
            behind = stop + 1
            if data[stop] == _ESCAPE:
                if behind == len(data):
                    break
                if data[behind] != _BACKSLASH:
                    at = stop
                    continue
                behind += 1
            elif data[stop] != _BEL:
                at = behind
                continue
            self._take(data[at + 2 : stop], base + at if at else first, base + behind)
            at = behind
        else:
            at = len(data) - data.endswith(b"\x1b")
        if at < len(data):
            self._hold(data[at:], base + at if at else first)

    def _hold(self, rest: bytes, at: int) -> None:
        """Remember a beginning until more comes."""
        if len(rest) > HELD_MAX:
            last = rest[-1:] if rest[-1] == _ESCAPE else b""
            rest = rest[: HELD_MAX - 1] + last
        self._held, self._held_at = rest, at

    # ------------------------------------------------------------------------------------ taking

    def _take(self, content: bytes, begin: int, behind: int) -> None:
        """A whole sequence of ours, found in [begin, behind)."""
        code, _, rest = content.partition(b";")
        match code:
            case b"133":
                self._take_mark(rest, begin, behind)
            case b"7":
                directory = _directory(rest, self._host)
                if directory is not None:
                    self.directory = directory
            case _:
                self.title = _text(rest[: TITLE_MAX * 4], _UNSAFE)[:TITLE_MAX]

    def _take_mark(self, content: bytes, begin: int, behind: int) -> None:
        kind, *options = content.split(b";")
        match kind:
            case b"A":
                self._close(begin, None)
            case b"C" if self.running is None:
                self._open(options, behind)
            case b"D":
                told = options[0] if options else b""
                known = _EXIT.fullmatch(told) is not None and not self._doubtful
                self._close(begin, int(told) if known else None)
            case _:
                pass

    def _open(self, options: list[bytes], behind: int) -> None:
        text = ""
        for option in options:
            name, _, value = option.partition(b"=")
            if name == b"cmdline_url":
                text = _command_line(value)
        self.count += 1
        self.running = Command(self.count, text, self.directory, behind, self._wall, self._monotonic)
        self._doubtful = False
        self._commands.append(self.running)

    def _close(self, begin: int, status: int | None) -> None:
        command = self.running
        if command is None:
            return
        command.end = begin
        command.ended, command.ended_monotonic = self._wall, self._monotonic
        command.exit = status
        self.running = None
        self._doubtful = False


# --------------------------------------------------------------------------------------------- decoding


def _decoded(value: bytes) -> bytes:
    return _ENCODED.sub(lambda found: bytes((int(found[1], 16),)), value)


def _text(value: bytes, unsafe: re.Pattern[str]) -> str:
    return unsafe.sub(_REPLACEMENT, value.decode("utf-8", "replace"))


def _command_line(value: bytes) -> str:
    line = _decoded(_CUT.sub(b"", value[:TOLD_MAX]) if len(value) > TOLD_MAX else value)
    text = _text(line[:TEXT_MAX], _UNSAFE_IN_LINES)
    # A long line is cut at a byte, here or by the shell: perhaps within a character.
    return text.rstrip(_REPLACEMENT) if len(value) >= TEXT_MAX else text


def _directory(value: bytes, host: str) -> str | None:
    """The path in file://HOST/PATH; None when it is none, or another machine's."""
    if not value.startswith(b"file://") or len(value) > TOLD_MAX:
        return None
    there, slash, path = value[7:].partition(b"/")
    path = _decoded(slash + path)
    if not slash or b"\0" in path or len(path) > DIRECTORY_MAX:
        return None
    if host and there and _decoded(there).lower() not in {b"localhost", host.encode().lower()}:
        return None
    return _text(path, _UNSAFE)
