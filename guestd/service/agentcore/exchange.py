"""A request and its answer, as far as what answers it needs to know: transport/exchange.py is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trio_websocket import WebSocketConnection

    RawHeaders = Sequence[tuple[bytes, bytes]]


class Exchange(Protocol):
    """One task reads the request, one writes the answer; they may be two."""

    peer: str
    method: str
    target: str
    #: Bytes of an answer have been sent.
    began: bool
    #: Called when guestd wants to leave.
    leaving: list[Callable[[], None]]

    @property
    def headers(self) -> RawHeaders: ...
    def header(self, name: bytes) -> bytes | None: ...
    def words(self, name: bytes) -> list[bytes]: ...
    @property
    def wants_websocket(self) -> bool: ...
    def check_websocket(self) -> None: ...

    async def receive(self) -> bytes: ...
    async def body(self, most: int, patience: float) -> bytes: ...
    async def hung_up(self) -> None: ...

    async def answer(self, status: int, headers: RawHeaders, body: bytes = b"") -> None: ...
    async def begin(self, status: int, headers: RawHeaders, reason: bytes = b"") -> None: ...
    async def inform(self, status: int, headers: RawHeaders, reason: bytes = b"") -> None: ...
    async def send(self, data: bytes) -> None: ...
    async def end(self, trailers: RawHeaders = ()) -> None: ...
    async def write(self, data: bytes | bytearray) -> None: ...
    async def read(self) -> bytes | bytearray: ...
    async def websocket(
        self, headers: RawHeaders, most: int, serve: Callable[[WebSocketConnection], Awaitable[None]],
        *, patience: float, subprotocol: str | None = None,
    ) -> None: ...  # fmt: skip


class HttpPeer(Protocol):
    """The connection it came by."""

    def asked_by(self, ask: Callable[[float], Awaitable[bool]] | None) -> None: ...
