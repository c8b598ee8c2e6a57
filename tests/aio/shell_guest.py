"""A scripted guest with one shell, and connections that break where a test says."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from trio.testing import memory_stream_pair

from guestd.client import over
from guestd.errors import Unavailable
from guestd.wire.frames import Kind
from tests.aio.scripted import Cut, Peer, control, data_frame, end

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from guestd.client import Client
    from tests.aio.scripted import Seen

_TERMINAL, _SCREEN = 3, 4


class ShellGuest:
    """One shell. It prints `text`, and ends when it has read `wants` bytes from all who type; None: it stays.

    `cuts`: how many bytes each connection carries in both directions before it breaks; those after the last hold.
    """

    def __init__(
        self,
        tasks: trio.Nursery,
        *,
        text: bytes = b"",
        wants: int | None = 0,
        cuts: Sequence[tuple[float, float]] = (),
        piece: int = 100,
        window: int = 1000,
        boot: Sequence[str] = ("boot",),
    ) -> None:
        self.text = text
        self.kept_from = 0
        self.wants = wants
        #: What each client has typed.
        self.typed: dict[str, bytes] = {}
        self.events: list[dict[str, Any]] = []
        self.opened: list[Seen] = []
        self.viewers: list[dict[str, Any]] = []
        self.exists = False
        self.started = 0
        self.connections = 0
        self.down = False
        self.forgotten = False
        self._tasks = tasks
        self._cuts = list(cuts)
        self._piece = piece
        self._window = window
        self._boot = list(boot)

    @asynccontextmanager
    async def dial(self) -> AsyncGenerator[Client]:
        if self.down:
            raise Unavailable("cannot reach the guest: it is down")
        near, far = memory_stream_pair()
        sends, receives = self._cuts.pop(0) if self._cuts else (float("inf"), float("inf"))
        boot = self._boot[min(self.connections, len(self._boot) - 1)]
        self.connections += 1
        self._tasks.start_soon(self._serve, Cut(far, sends=sends, receives=receives), boot)
        async with over(near, window=1000, heartbeat=float("inf")) as client:
            yield client

    @staticmethod
    def picture(offset: int) -> bytes:
        """What draws the screen at that offset."""
        return b"<screen at %d>" % offset * 50

    async def _serve(self, stream: trio.abc.Stream, boot: str) -> None:
        try:
            peer = Peer(stream, window=self._window)
            await peer.greet(boot)
            seen = await peer.receive()
            while seen is not None:
                # What comes late, for a channel that has ended, is nothing to answer.
                seen = await (self._answer(peer, seen) if seen.kind is Kind.OPEN else peer.receive())
        except trio.BrokenResourceError:
            pass
        except AssertionError as error:
            # A cut in the client's direction ends in the middle of its frame, which is what was asked for.
            if "in the middle of a frame" not in str(error):
                raise
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer(self, peer: Peer, opened: Seen) -> Seen | None:
        """Serve one request; returns the next."""
        self.opened.append(opened)
        fields, channel = opened.fields, opened.channel
        if fields["op"] == "ps":
            await peer.send(control(Kind.ACCEPT, channel))
            rows = [{"id": "another"}, {"id": self.opened[0].fields["id"], "viewers": self.viewers}]
            await peer.send(control(Kind.END, channel, jobs=rows))
            return await peer.receive()
        if (fields["op"] == "attach" and not self.exists) or self.forgotten:
            await peer.send(control(Kind.REJECT, channel, code="not_found", message="there is no such job"))
            return await peer.receive()
        created = not self.exists
        self.started += created
        self.exists = True
        return await self._show(peer, opened, created=created)

    async def _show(self, peer: Peer, opened: Seen, *, created: bool) -> Seen | None:
        fields, channel = opened.fields, opened.channel
        client: str = fields["client"]
        passed_on = len(self.typed.setdefault(client, b""))
        await peer.send(
            control(
                Kind.ACCEPT, channel, id=fields["id"], kind="shell", created=created, pid=7, state="running",
                role=fields.get("role", "owner"), size={"columns": 80, "rows": 24}, input={"offset": passed_on},
                streams={"terminal": {"start": self.kept_from, "end": len(self.text)}},
            )
        )  # fmt: skip
        at, picture = self._begin(fields["from"])
        if picture:
            await peer.send(
                control(
                    Kind.EVENT, channel, event="restore", offset=at, bytes=len(picture), columns=80, rows=24,
                    exact=True,
                )
            )  # fmt: skip
        credit, drawn = fields.get("window", 1000), 0
        while drawn < len(picture) or at < len(self.text) or not self._has_read():
            if drawn < len(picture) and credit:
                piece = picture[drawn : drawn + min(self._piece, credit)]
                await peer.send(data_frame(channel, _SCREEN, drawn, piece))
                drawn, credit = drawn + len(piece), credit - len(piece)
                continue
            if drawn == len(picture) and at < len(self.text) and credit:
                piece = self.text[at : at + min(self._piece, credit)]
                await peer.send(data_frame(channel, _TERMINAL, at, piece))
                at, credit = at + len(piece), credit - len(piece)
                continue
            seen = await peer.receive()
            if seen is None or seen.kind is Kind.OPEN:
                return seen
            if seen.kind is Kind.RESET:
                await peer.send(control(Kind.RESET, channel))
                return await peer.receive()
            if seen.kind is Kind.CREDIT:
                credit += seen.fields["bytes"]
            elif seen.kind is Kind.DATA:
                known = len(self.typed[client])
                assert seen.offset <= known, "what was typed has a hole"
                self.typed[client] += seen.data[known - seen.offset :]
                if len(self.typed[client]) - passed_on >= self._window // 2:
                    size, passed_on = len(self.typed[client]) - passed_on, len(self.typed[client])
                    await peer.send(control(Kind.CREDIT, channel, bytes=size))
            else:
                self.events.append(seen.fields)
        await peer.send(end(channel, fields["id"], kind="shell"))
        return await peer.receive()

    def _begin(self, start: dict[str, int] | str) -> tuple[int, bytes]:
        """From which offset, and with which picture before it."""
        if start == "start":
            return self.kept_from, b""
        if start == "end":
            return len(self.text), b""
        if isinstance(start, dict) and start["terminal"] >= self.kept_from:
            return start["terminal"], b""
        # A screen in the middle of what is printed: a shell prints on while its screen is looked at.
        at = max(self.kept_from, len(self.text) // 2)
        return at, self.picture(at) if self.text else b""

    def _has_read(self) -> bool:
        return self.wants is not None and sum(map(len, self.typed.values())) >= self.wants
