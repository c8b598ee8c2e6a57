"""What a terminal shows, for those who come later.

A model of the screen costs more time than reading the output does, so it is not kept up with it: it lags behind,
and is fed from the tape when it lags too far, a little at a time, or at once when somebody is waiting for it. A
flood that nobody watches is not modelled at all but skimmed for what lasts (modes, title, colours), because what a
flood leaves on a screen is its end.

Whoever waits holds the program for that moment: else it could run away from its own picture for ever.
"""

from __future__ import annotations

import logging
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from guestd.session.terminal_recording import LEAD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guestd.process.terminal import Size
    from guestd.session.terminal_recording import TerminalRecording
    from guestd.terminal.model import TerminalModel

_log = logging.getLogger("guestd.screen")
#: So much may wait to be modelled: what somebody who attaches waits for, 50 ms of a busy full-screen program.
LAG = 256 * 1024
#: Little enough to be modelled while nobody else gets a turn.
_AT_ONCE = 4 * 1024
#: In one turn of the loop: as long as anything else there may have to wait for it.
_TURN = 0.002
#: Between two turns while nobody waits: a tenth of one processor is enough for what nobody looks at.
_REST, _REST_PER_TURN = 0.02, 9
#: Plain text is modelled a hundred times as fast as what is full of escape sequences.
_PLAIN_PIECE, _PIECE = 64 * 1024, 2 * 1024
_ESCAPES_IN_PLAIN = 32
#: A screen of more cells is not modelled: a picture of it would be larger than all else of the shell.
_MOST_CELLS = 128 * 1024
#: The history is as long as was asked for while it is of no more cells.
_HISTORY_CELLS = 2 * 1024 * 1024
#: A line of the widest screen becomes so many when the screen gets narrow; beyond that the model is begun anew.
_MOST_ROWS = 64 * 1024
#: Changes of size that lie ahead of the model.
_SIZES = 16
#: A picture that is larger takes longer to send than its program to draw anew.
_PICTURE_MAX = 4 * 1024 * 1024


class Picture(NamedTuple):
    """What puts a terminal of that size into the state that this one has at `offset`."""

    offset: int
    data: bytes
    size: Size
    #: False: some of it may be missing, and the program should be asked to draw it again.
    exact: bool


class Screen:
    """See the module. One viewer of the terminal's output; it holds while somebody waits."""

    def __init__(
        self,
        recording: TerminalRecording,
        size: Size,
        history: int,
        start_soon: Callable[[Callable[[], Awaitable[object]]], None],
    ) -> None:
        self._recording = recording
        self._history = history
        self._start_soon = start_soon
        self._size = size
        #: Changes of size that lie ahead of the model: where in the output, and to what.
        self._sizes: deque[tuple[int, Size]] = deque()
        self._model: TerminalModel | None = None
        self._model_size = size
        self._at = 0
        self._waiting: list[Callable[[], None]] = []
        self._running = False
        self._failed = False
        self._rested = trio.CancelScope()

    # ------------------------------------------------------------------------------- as a viewer

    @property
    def holds(self) -> bool:
        return bool(self._waiting)

    def position(self, stream: int) -> int:
        """Where it holds the program, so that this comes no further ahead than can be modelled at once: with all of
        the usual lead it would stay so far ahead for ever.
        """
        del stream
        return self._at + _AT_ONCE - LEAD

    def lapse(self) -> None:
        """It holds only for as long as it takes to catch up."""

    def news(self) -> None:
        """Output has come."""
        if not self._running and self._recording.end - self._at > LAG and self._is_modelled:
            self._run()

    # ------------------------------------------------------------------------------------ asking

    def resized(self, size: Size) -> None:
        """The screen has that size from here on."""
        self._size = size
        if self._sizes and self._sizes[-1][0] == self._recording.end:
            self._sizes.pop()
        self._sizes.append((self._recording.end, size))
        if len(self._sizes) > _SIZES:
            # Somebody drags a window about. Only where it comes to rest is of interest, and each costs a reflow.
            self._sizes.popleft()

    def when_current(self, call: Callable[[], None]) -> None:
        """Call when the model has seen everything; now, if it is nearly there. The call may ask for a picture, and
        nothing is written in between.
        """
        if not self._is_modelled or self._recording.end - self._at <= _AT_ONCE:
            call()
            return
        self._waiting.append(call)
        self._rested.cancel()
        if not self._running:
            self._run()

    def picture(self) -> Picture:
        """Only within `when_current`."""
        offset = self._recording.end
        if self._is_modelled:
            try:
                while self._at < offset:
                    self._step(_PIECE)
                model = self._sized_model(offset)
                data = model.restore()
                if len(data) <= _PICTURE_MAX:
                    return Picture(offset, data, self._size, model.exact)
            except Exception:  # noqa: BLE001  see _has_failed
                self._has_failed()
        return Picture(offset, b"", self._size, exact=False)

    def describe(self) -> dict[str, Any]:
        """For those who want to know what a model costs."""
        return {"behind": self._recording.end - self._at, "modelled": self._model is not None}

    # ---------------------------------------------------------------------------------- modelling

    @property
    def _is_modelled(self) -> bool:
        return not self._failed and self._size.columns * self._size.rows <= _MOST_CELLS

    def _run(self) -> None:
        self._running = True
        self._start_soon(self._catch_up)

    async def _catch_up(self) -> None:
        """Feed the model until it is there, or near enough and nobody waits."""
        recording = self._recording
        try:
            while recording.end - self._at > (_AT_ONCE if self._waiting else LAG // 2):
                begun = perf_counter()
                while recording.end - self._at > _AT_ONCE and perf_counter() - begun < _TURN:
                    self._step(_PLAIN_PIECE)
                if self._waiting:
                    recording.made_room()
                    await trio.lowlevel.checkpoint()
                else:
                    with trio.CancelScope() as self._rested:
                        await trio.sleep(max(_REST, _REST_PER_TURN * (perf_counter() - begun)))
            if self._model is not None:
                # What it has put off: half a megabyte that would otherwise stay until somebody comes.
                self._model.catch_up()
        except Exception:  # noqa: BLE001  see _has_failed
            self._has_failed()
        finally:
            self._running = False
        calls, self._waiting = self._waiting, []
        for call in calls:
            try:
                call()
            except Exception:  # noqa: BLE001  see below
                # Of one who waited; the others, and the shell, have nothing to do with it.
                _log.exception("a picture could not be given to whoever waited for it")
        recording.made_room()

    def _has_failed(self) -> None:
        """A mistake in the model costs the pictures of this shell, and not the shell: its programs can draw again."""
        _log.exception("the screen of a shell cannot be modelled")
        self._failed = True
        self._model = None

    def _step(self, most: int) -> None:
        """Feed the model the next piece."""
        recording = self._recording
        while self._sizes and self._sizes[0][0] <= self._at:
            self._apply_size(self._sizes.popleft()[1])
        if self._sizes:
            most = min(most, self._sizes[0][0] - self._at)
        piece = recording.read(self._at, most)
        model = self._the_model()
        if piece.offset > self._at:
            model.lost()
        data = bytes(piece.data)
        if len(data) <= _PIECE or data.count(b"\x1b") <= _ESCAPES_IN_PLAIN:
            model.feed(data)
        elif self._waiting or recording.end - piece.offset <= recording.capacity // 2:
            model.feed(data := data[:_PIECE])
            # It puts off what looks like lines of text; that would come all at once to whoever waits for a picture.
            model.catch_up()
        else:
            # It is about to be overwritten, and there is more where it came from.
            model.skim(data)
        self._at = piece.offset + len(data)

    def _the_model(self) -> TerminalModel:
        if self._model is None:
            # Not at start-up, and not for a shell that nobody ever comes back to.
            from guestd.terminal.model import TerminalModel

            size = self._model_size
            history = min(self._history, _HISTORY_CELLS // size.columns)
            self._model = TerminalModel(size.columns, size.rows, history=history)
            if self._at:
                self._model.lost()
        return self._model

    def _sized_model(self, offset: int) -> TerminalModel:
        while self._sizes and self._sizes[0][0] <= offset:
            self._apply_size(self._sizes.popleft()[1])
        return self._the_model()

    def _apply_size(self, size: Size) -> None:
        before, self._model_size = self._model_size, size
        if self._model is None:
            return
        rows = (self._history + before.rows) * before.columns // size.columns
        if rows > _MOST_ROWS or size.columns * size.rows > _MOST_CELLS:
            self._model = None
        else:
            self._model.resize(size.columns, size.rows)
