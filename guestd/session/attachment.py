"""A viewer of a job: a cursor in each stream. Attaching is setting cursors; there is no queue behind them.

A viewer that *holds* slows the job instead of losing bytes; any other that falls behind the ring gets a gap
that says how much was lost. Whoever writes for the viewer pulls with `take`, and hears through `wake` when
there is something new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from guestd import observe

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from guestd.session.job import Job


class Output(NamedTuple):
    """Bytes of one stream. `data` is a view of the ring: good until the next await."""

    stream: int
    offset: int
    data: memoryview


class Gap(NamedTuple):
    """Bytes that this viewer can no longer have."""

    stream: int
    start: int
    end: int


class Attachment:
    """Made by `Job.attach`."""

    def __init__(self, job: Job, start: Mapping[int, int], wake: Callable[[], None], *, holds: bool) -> None:
        self.job = job
        self.holds = holds
        #: It held, took nothing for too long, and holds again once it has caught up.
        self.has_lapsed = False
        self._cursors = dict(start)
        # By stream, where it would be now had it taken nothing.
        self._untaken = dict(start)
        self._wake = wake
        self._turn = 0
        #: By stream, how many bytes this viewer could not have any more.
        self.lost: dict[int, int] = {}

    def position(self, stream: int) -> int:
        return self._cursors[stream]

    @property
    def taken(self) -> int:
        """Bytes that it got."""
        return sum(self._cursors[each] - self._untaken[each] for each in self._cursors)

    def news(self) -> None:
        if self in self.job.attachments:
            self._wake()

    @property
    def pending(self) -> int:
        """How much could be taken now."""
        return sum(
            max(0, recording.end - self._cursors[recording.stream]) for recording in self.job.recordings
        )

    @property
    def finished(self) -> bool:
        """The job is over, and this viewer has everything it can have."""
        return self.job.result is not None and self.pending == 0

    def take(self, most: int) -> Output | Gap | None:
        """The next piece of whichever stream's turn it is; None when there is nothing."""
        recordings = self.job.recordings
        for _ in recordings:
            recording = recordings[self._turn % len(recordings)]
            self._turn += 1
            at = self._cursors[recording.stream]
            if at >= recording.end:
                continue
            piece = recording.read(at, most)
            if piece.offset > at:
                self._cursors[recording.stream] = piece.offset
                self._untaken[recording.stream] += piece.offset - at
                self.lost[recording.stream] = self.lost.get(recording.stream, 0) + piece.offset - at
                self._turn -= 1  # the bytes behind the gap come next, not another stream's
                return Gap(recording.stream, at, piece.offset)
            self._cursors[recording.stream] = piece.offset + len(piece.data)
            if self.holds:
                recording.made_room()
            elif self.has_lapsed:
                self._resume()
            return Output(recording.stream, piece.offset, piece.data)
        return None

    def move(self, stream: int, offset: int) -> None:
        """Go on from there: what lies between is not wanted."""
        self._untaken[stream] += offset - self._cursors[stream]
        self._cursors[stream] = offset
        self._made_room()
        if self.has_lapsed:
            self._resume()

    def hold(self, *, holds: bool) -> None:
        """Hold the job from now on, or no longer."""
        self.holds = holds
        self.has_lapsed = False
        self._made_room()

    def lapse(self) -> None:
        """Hold no longer, before the job waits for ever for somebody who has gone without a word."""
        self.holds, self.has_lapsed = False, True

    def _resume(self) -> None:
        if not self.pending:
            self.holds, self.has_lapsed = True, False

    def _made_room(self) -> None:
        for recording in self.job.recordings:
            recording.made_room()

    def detach(self) -> None:
        """Let go; a producer that waited for this viewer goes on."""
        self.job.detach(self)


def stop_viewing(viewer: Hashable, attachment: Attachment | None) -> None:
    """`viewer`, whose beginning was told as an "attachment", watches no more. None: it had not begun to."""
    if attachment is None:
        observe.ended("attachment", viewer, sent=0, gaps=0)
        return
    attachment.detach()
    observe.ended("attachment", viewer, sent=attachment.taken, gaps=sum(attachment.lost.values()))
