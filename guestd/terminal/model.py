"""The model of a terminal that has seen all of a shell's output, and what another needs to see to be in its state.

`feed` takes bytes at any split. Nothing is ever asked of anybody and nothing is sent: queries in the stream are for the
terminals in front of people. Everything kept is bounded, whatever is fed.

Bulk output (a log, a listing, `yes`) is not taken apart while it comes: as long as nothing but lines of text and
colours is in it, its end decides what is shown, so it is only collected, and all but its end is dropped (see
`bulk.py`). That is exact, and much faster. Whoever asks for the state gets it with all that was collected.
"""

from __future__ import annotations

from codecs import utf_8_decode
from typing import TYPE_CHECKING

from guestd.terminal import bulk, characters, controls, restore, tokens
from guestd.terminal.bulk import Backlog
from guestd.terminal.cells import BLANK, TAIL
from guestd.terminal.pens import is_sgr
from guestd.terminal.resizing import resize
from guestd.terminal.screen import Terminal

if TYPE_CHECKING:
    from typing import Any

#: Bytes that are taken apart at once.
_SLICE = 0x8000


class TerminalModel:
    """See the module."""

    __slots__ = ("_backlog", "_partial", "_pending", "_skipping", "_terminal", "exact")

    def __init__(self, columns: int, rows: int, *, history: int = 1000) -> None:
        self._terminal = Terminal(columns, rows, history)
        self._backlog = Backlog()
        #: The beginning of a character, of a sequence; and which kind of sequence is left out because it is too long.
        self._partial = b""
        self._pending = ""
        self._skipping = ""
        #: Nothing was skipped or lost that the screen could differ by from that of a terminal that saw it.
        self.exact = True

    @property
    def columns(self) -> int:
        return self._terminal.columns

    @property
    def rows(self) -> int:
        return self._terminal.rows

    @property
    def alternate(self) -> bool:
        """The alternate screen is shown: a full-screen program runs."""
        return self._terminal.alternate

    @property
    def title(self) -> str:
        """The window's title; empty when no program has set one."""
        return self._terminal.strings.title or ""

    # ----------------------------------------------------------------------------------------------- feeding

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """What the shell has written."""
        data = bytes(data)
        if len(data) < bulk.LEAST and not self._backlog.data:
            self._take(data)
            return
        at = 0
        while at < len(data):
            if self._pending or self._skipping or self._partial:
                # In the middle of something, nothing is plain.
                self._take(data[at : at + bulk.LEAST])
                at += bulk.LEAST
                continue
            end, odd = bulk.plain(data, at)
            if end - at >= bulk.LEAST or (self._backlog.data and end > at):
                self._collect(data[at:end])
                at = end
            if odd:
                self.catch_up()
                end = min(end + bulk.LEAST, len(data))
            self._take(data[at:end])
            at = end

    def _collect(self, data: bytes) -> None:
        terminal, backlog = self._terminal, self._backlog
        backlog.add(data)
        if backlog.size > bulk.MOST:
            whole = terminal.top == 0 and terminal.bottom == terminal.rows - 1
            plain = whole and not terminal.charsets.single
            lines = 2 * terminal.rows + (0 if terminal.alternate else terminal.history.maxlen or 0)
            dropped = backlog.trim(lines) if plain else b""
            if dropped:
                terminal.pen = bulk.pen_after(terminal.pens, terminal.pen, dropped)
                terminal.x = 0
                terminal.last = ""
            if backlog.size > bulk.TOO_MUCH:
                self.catch_up()

    def catch_up(self) -> None:
        """Take apart what was only collected. Asking for the state does it too; an idle moment is a better time."""
        if self._backlog.data:
            self._take(self._backlog.take())

    def _take(self, data: bytes, *, skim: bool = False) -> None:
        for at in range(0, len(data), _SLICE):
            piece = data[at : at + _SLICE]
            if self._partial:
                piece = self._partial + piece
                self._partial = b""
            if piece.isascii():
                text = piece.decode("ascii")
            else:
                text, used = utf_8_decode(piece, "replace", False)
                self._partial = piece[used:]
                if tokens.C1.search(text):
                    text = text.translate(tokens.ESCAPED)
            self._parse(text, skim=skim)
            self._terminal.sweep()

    def _parse(self, text: str, *, skim: bool) -> None:
        while text:
            if self._skipping:
                end = tokens.ENDS[self._skipping].search(text)
                if end is None:
                    return
                self._skipping = ""
                text = text[end.end() :]
            if self._pending:
                text = self._pending + text
                self._pending = ""
            text = self._skim(text) if skim else self._run(text)

    def _run(self, text: str) -> str:  # noqa: C901, PLR0912, PLR0915  the one hot loop: a call for each part would cost more than the part
        """Do what a text says. Returns what is still to be read, when it has to be read again."""
        terminal = self._terminal
        steps = terminal.pens.steps
        columns = terminal.columns
        modes, charsets = terminal.modes, terminal.charsets
        last = terminal.last
        for run, csi, other, begun in tokens.TOKENS.findall(text):
            if run:
                last = run
                if charsets.table is not None:
                    last = run[1:] if charsets.single else run
                    run = charsets.translate(run)  # noqa: PLW2901
                x = terminal.x
                end = x + len(run)
                row = terminal.lines[terminal.y]
                shown = row.text
                if end > columns or modes.insert or (not shown.isascii() and TAIL in shown):
                    terminal.write(run)
                else:
                    size = len(shown)
                    if x == size:
                        row.text = shown + run
                    elif x < size:
                        row.text = shown[:x] + run + shown[end:]
                    else:
                        row.text = shown.ljust(x, BLANK) + run
                    pen, pens = terminal.pen, row.pens
                    if pen:
                        if len(pens) == x:
                            row.pens = pens + chr(pen) * (end - x)
                        else:
                            row.pens = pens[:x].ljust(x, BLANK) + chr(pen) * (end - x) + pens[end:]
                    elif len(pens) > x:
                        row.pens = pens[:x] + BLANK * (end - x) + pens[end:]
                    terminal.x = end
            if csi:
                pen = steps.get((terminal.pen, csi))
                if pen is not None:
                    terminal.pen = pen
                elif len(csi) > tokens.LONGEST - 2:
                    pass
                elif csi[-1] == "m" and is_sgr(csi):
                    terminal.pen = terminal.pens.step(terminal.pen, csi)
                else:
                    terminal.last = last
                    control, parameters = controls.sequence(csi)
                    control(terminal, parameters)
                last = ""
            elif other:
                control = characters.C0.get(other)
                if control is not None:
                    last = ""
                    control(terminal)
                elif other[0] >= "\x80":
                    if terminal.write_any(charsets.translate(other)):
                        last = other
                elif other[0] == "\x1b":
                    last = ""
                    self._sequence(other)
                elif other != "\x7f":
                    last = ""
            elif begun:
                terminal.last = last
                return self._begun(begun)
        terminal.last = last
        return ""

    def _begun(self, text: str) -> str:
        """A sequence that is not whole, from its ESC to the end of what has come. Returns what is to be read again."""
        if tokens.LATE.search(text):
            return tokens.LATE.sub("\\1\x1b", text)
        if len(text) > tokens.LONGEST:
            self._skipping = tokens.kind(text)
        else:
            self._pending = text
        return ""

    def _sequence(self, text: str) -> None:
        """A whole sequence, of the rarer ones."""
        if len(text) > tokens.LONGEST:
            return
        second = text[1:2]
        if second == "]":
            # It counts when it ends with BEL or at an ESC, and is broken off by anything else.
            if text[-1] not in "\x18\x1a":
                self._heard(text[2:].rstrip("\x07").translate(tokens.DELETED))
        elif second not in ("P", "X", "^", "_"):
            self._obey(text)

    def _obey(self, text: str) -> None:
        terminal = self._terminal
        for control in tokens.INSIDE.findall(text):
            if control in characters.C0:
                characters.C0[control](terminal)
        clean = text.translate(tokens.DELETED)
        if clean[1:2] == "[":
            if is_sgr(clean[2:]):
                terminal.pen = terminal.pens.step(terminal.pen, clean[2:])
            else:
                control, parameters = controls.sequence(clean[2:])
                control(terminal, parameters)
        elif clean == "\x1bc":
            terminal.begin()
            self.exact = True
        else:
            characters.escape(terminal, clean[1:])

    def _heard(self, text: str) -> None:
        link = self._terminal.strings.heard(text)
        if link is not None:
            terminal = self._terminal
            look = terminal.pens.look(terminal.pen)
            terminal.pen = terminal.pens.number(look._replace(link=link))

    # ------------------------------------------------------------------------------------- what was not seen

    def skim(self, data: bytes | bytearray | memoryview) -> None:
        """What the shell has written, when there is no time to show it: only what outlasts the screen is heeded."""
        self.catch_up()
        self._terminal.last = ""
        self.exact = False
        self._take(bytes(data), skim=True)

    def _skim(self, text: str) -> str:
        """As `_run`, for what outlasts the screen."""
        if not ("\x1b" in text or "\x0e" in text or "\x0f" in text):
            return ""
        terminal = self._terminal
        steps = terminal.pens.steps
        for csi, other, begun in tokens.CONTROLS.findall(text):
            if csi:
                pen = steps.get((terminal.pen, csi))
                if pen is not None:
                    terminal.pen = pen
                elif len(csi) > tokens.LONGEST - 2:
                    pass
                elif is_sgr(csi):
                    terminal.pen = terminal.pens.step(terminal.pen, csi)
                else:
                    control, parameters = controls.sequence(csi)
                    if controls.lasts(control):
                        control(terminal, parameters)
            elif begun:
                return self._begun(begun)
            elif other[0] == "\x1b":
                self._sequence(other)
            else:
                characters.C0[other](terminal)
        return ""

    def lost(self) -> None:
        """Some of what the shell has written never came here."""
        self.catch_up()
        self._partial = b""
        self._pending = self._skipping = ""
        self._terminal.last = ""
        self.exact = False

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size now."""
        self.catch_up()
        resize(self._terminal, columns, rows)

    # --------------------------------------------------------------------------------------------- its state

    def restore(self) -> bytes:
        """The bytes that put any terminal of this size, in whatever state, into this one's. See `restore.py`."""
        self.catch_up()
        return restore.painted(self._terminal) + self._unread()

    def _unread(self) -> bytes:
        """What the next bytes continue."""
        if self._skipping:
            # The rest of what is too long to keep: nothing that a terminal would heed, and with the same end.
            return {"[": b"\x1b[<", "]": b"\x1b]7777;", "P": b"\x1b^", " ": b"\x1b !"}[self._skipping]
        return self._pending.encode() + self._partial

    def state(self) -> dict[str, Any]:
        """All that can be seen of it, in a form that can be compared."""
        self.catch_up()
        return restore.state(self._terminal) | {"unread": self._unread()}
