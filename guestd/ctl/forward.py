"""guestctl forward: listeners on this side, a connection to the guest that is found again, and what passes between."""

from __future__ import annotations

import errno
import json as json_text
import os
import signal
import socket
import stat
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from guestd.client.backoff import Backoff
from guestd.client.tasks import background
from guestd.ctl.dialing import dialer
from guestd.ctl.failures import printable, say
from guestd.errors import BadRequest, ConnectionLost, GuestdError, leaves

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Callable, Mapping

    from guestd.client import Client, ForwardedStream
    from guestd.ctl.forward_spec import Spec
    from guestd.wire.address import Address

_BACKLOG = 512
_CHUNK = 256 * 1024
#: How long a connection waits for a guest that is being looked for.
_PATIENCE = 30.0
#: A guest that is silent for twice this is gone, and connections through it break.
_HEARTBEAT = 15.0
_BACKOFF = Backoff(delays=(0.1, 0.3, 1.0, 2.0, 4.0), last=8.0)
_OUT_OF_FDS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_BREATHER = 0.1
_RESET_ON_CLOSE, _PLAIN_CLOSE = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


def forward(options: argparse.Namespace) -> int:
    """Until SIGINT or SIGTERM: 0."""
    return trio.run(_forward, options)


async def _forward(options: argparse.Namespace) -> int:
    teller = _Teller(json=options.json)
    doors: list[_Door] = []
    try:
        doors += [_Door(spec) for spec in options.specs]
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            line = _Line(dialer(options, heartbeat=_HEARTBEAT), teller)
            async with background() as tasks:
                await tasks.start(line.run)
                for door in doors:
                    teller.listening(door)
                    tasks.start_soon(door.accept, line, options.idle, teller)
                await _first(signals)
    except* GuestdError as group:
        # One guest, one reason: that it could not be reached at all.
        raise next(leaves(group)) from None
    finally:
        for door in doors:
            door.close()
    return 0


async def _first(signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        return


class _Teller:
    """What is said while it goes on: for a person on stderr and stdout, for a program one object a line."""

    def __init__(self, *, json: bool) -> None:
        self._json = json
        # What was wrong with a target the last time: a browser asks again and again.
        self._told: dict[str, str] = {}

    def listening(self, door: _Door) -> None:
        self._note("listening", f"{_shown(door.where)} -> {_shown(door.guest)}", door, {})

    def failed(self, door: _Door, error: GuestdError) -> None:
        if self._json:
            self._note("refused", "", door, error.to_map())
        elif self._told.get(str(door.where)) != error.message:
            say(f"{_shown(door.where)}: {error.message}")
        self._told[str(door.where)] = error.message

    def took(self, door: _Door) -> None:
        self._told.pop(str(door.where), None)

    def line(self, what: str, text: str, error: GuestdError | None = None) -> None:
        if self._json:
            self._note(what, "", None, {} if error is None else error.to_map())
        else:
            say(text)

    def _note(self, event: str, text: str, door: _Door | None, more: Mapping[str, object]) -> None:
        fields: dict[str, Any] = {"event": event}
        if door is not None:
            fields |= {"local": str(door.where), "guest": str(door.guest)}
        print(json_text.dumps({**fields, **more}, default=str) if self._json else printable(text), flush=True)


def _shown(address: Address) -> str:
    return str(address).removeprefix("tcp:")


class _Line:
    """The connection to the guest. When it is lost, another is made; who needs one waits for it."""

    def __init__(self, dial: Callable[[], Any], teller: _Teller) -> None:
        self._dial = dial
        self._teller = teller
        self._client: Client | None = None
        self._there = trio.Event()
        self._failure: GuestdError = ConnectionLost("there is no connection to the guest")

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The first time has to succeed; then for as long as it takes."""
        attempt, began = 0, False
        while True:
            try:
                async with self._dial() as client:
                    self._client = client
                    self._there.set()
                    if began:
                        self._teller.line("again", "the guest is there again")
                    else:
                        began = True
                        task_status.started()
                    attempt = 0
                    await client.wait_lost()
                    # At once: leaving the connection takes a while, and nobody is to ask it for anything then.
                    self._failure = client.failure or self._failure
                    self._client, self._there = None, trio.Event()
                    self._teller.line("lost", f"{self._failure.message}; still listening", self._failure)
            except GuestdError as error:
                if not began:
                    raise
                self._failure = error
            await trio.sleep(_BACKOFF.delay(attempt))
            attempt += 1

    async def client(self) -> Client:
        """The guest, as soon as it is there."""
        with trio.move_on_after(_PATIENCE):
            while self._client is None or self._client.failure is not None:
                if self._client is None:
                    await self._there.wait()
                else:
                    await trio.lowlevel.checkpoint()
            return self._client
        raise self._failure


class _Door:
    """A socket that listens here, and where it leads."""

    def __init__(self, spec: Spec) -> None:
        self.guest = spec.guest
        self._path = ""
        try:
            self._sock = self._open(spec.local)
        except OSError as error:
            raise BadRequest(
                f"cannot listen on {_shown(spec.local)}: {error.strerror or error}; choose another port, or 0 for any",
                field="LOCAL",
            ) from None
        #: Port 0 has become one.
        self.where = spec.local
        if spec.local.scheme == "tcp":
            self.where = spec.local._replace(port=self._sock.getsockname()[1])

    def _open(self, address: Address) -> socket.socket:
        if address.scheme == "unix":
            _clear_stale(address.path)
            sock = socket.socket(socket.AF_UNIX)
            # Nobody but this user: what is in the guest may be theirs alone.
            before = os.umask(0o177)
            try:
                return self._listen(sock, address.path)
            finally:
                os.umask(before)
                self._path = address.path if sock.fileno() >= 0 else ""
        infos = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        sock = socket.socket(infos[0][0], socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return self._listen(sock, infos[0][4])

    def _listen(self, sock: socket.socket, where: object) -> socket.socket:
        try:
            sock.setblocking(False)
            sock.bind(where)  # pyright: ignore[reportArgumentType]  each family has an address type of its own
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        self._sock.close()
        if self._path:
            with suppress(FileNotFoundError):
                os.unlink(self._path)

    async def accept(self, line: _Line, idle: float | None, teller: _Teller) -> None:
        """Accept until cancelled."""
        async with trio.open_nursery() as connections:
            while True:
                await trio.lowlevel.wait_readable(self._sock)
                try:
                    sock, _ = self._sock.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno in _OUT_OF_FDS:
                        say(f"cannot accept: {error.strerror}; trying again")
                        await trio.sleep(_BREATHER)
                    continue
                connections.start_soon(self._lead, sock, line, idle, teller)

    async def _lead(self, sock: socket.socket, line: _Line, idle: float | None, teller: _Teller) -> None:
        """One connection. Closed without being settled, it is reset: nothing that broke looks like an end."""
        sock.setblocking(False)
        internet = sock.family != socket.AF_UNIX
        if internet:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            client = await line.client()
            stream = await client.forward(str(self.guest), idle_timeout=idle)
            teller.took(self)
            try:
                if await _pass_on(sock, stream) and internet:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _PLAIN_CLOSE)
            finally:
                stream.break_off()
        except GuestdError as error:
            teller.failed(self, error)
        except OSError:
            pass  # gone before it could be settled
        finally:
            trio.lowlevel.notify_closing(sock)
            sock.close()


async def _pass_on(sock: socket.socket, stream: ForwardedStream) -> bool:
    """Both ways, each to its end. False when one side broke."""
    whole = True
    async with trio.open_nursery() as nursery:

        async def run(one: Callable[[socket.socket, ForwardedStream], Any]) -> None:
            nonlocal whole
            try:
                await one(sock, stream)
            except (OSError, trio.BrokenResourceError):
                whole = False
                nursery.cancel_scope.cancel()

        nursery.start_soon(run, _to_guest)
        nursery.start_soon(run, _from_guest)
    return whole


async def _to_guest(sock: socket.socket, stream: ForwardedStream) -> None:
    while True:
        try:
            data = sock.recv(_CHUNK)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        if not data:
            await stream.send_eof()
            return
        await stream.send_all(data)


async def _from_guest(sock: socket.socket, stream: ForwardedStream) -> None:
    while data := await stream.receive_some():
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[sock.send(rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)
    sock.shutdown(socket.SHUT_WR)


def _clear_stale(path: str) -> None:
    """A socket that nobody listens on any more is in the way; one that somebody listens on stays, and bind says so."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
