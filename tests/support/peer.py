"""A client that does exactly what a test tells it, frame by frame, with blocking sockets: the other side of a promise.

`Peer` speaks either dialect and keeps the frames of each channel apart. `Call` is one channel; it holds guestd to
its word about output while it reads: each DATA frame begins exactly where the one before it ended, or behind a gap
that was announced. `Raw` is a socket without manners, for what no client should do.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Request, TextMessage

from guestd.wire.address import parse_address
from guestd.wire.frames import FRAME_LIMIT, PREFACE, Decoder, Kind, data_head, encode, read_data
from guestd.wire.messages import pack, unpack

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from guestd.wire.frames import Frame

#: Far above what any answer takes: a hang becomes a failure.
PATIENCE = 30.0
STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2, "terminal": 3, "screen": 4}
NAMES = {number: name for name, number in STREAMS.items()}


class Got(NamedTuple):
    """One frame, copied."""

    kind: Kind
    channel: int
    payload: bytes
    fields: dict[str, Any]


def dial(address: str) -> socket.socket:
    """A connected socket that gives up after PATIENCE."""
    where = parse_address(address)
    match where.scheme:
        case "unix":
            sock, target = socket.socket(socket.AF_UNIX), where.path
        case "tcp":
            sock, target = socket.socket(socket.AF_INET), (where.host, where.port)
        case "vsock":
            sock, target = socket.socket(socket.AF_VSOCK), (where.cid, where.port)
        case "hybrid":
            sock, target = socket.socket(socket.AF_UNIX), where.path
        case _:
            raise ValueError(address)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(target)
        if where.scheme == "hybrid":
            _knock(sock, where.port)
    except BaseException:
        sock.close()
        raise
    return sock


def _knock(sock: socket.socket, port: int) -> None:
    """What comes behind the answer's line is the guest's."""
    sock.sendall(b"CONNECT %d\n" % port)
    line = b""
    while not line.endswith(b"\n"):
        piece = sock.recv(1)
        if not piece:
            raise ConnectionRefusedError(f"nobody listens on port {port} of the guest")
        line += piece
    assert line.startswith(b"OK "), line


class Raw:
    """Bytes to guestd, and whatever comes back."""

    def __init__(self, address: str) -> None:
        self.sock = dial(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read_until_closed(self) -> bytes:
        """Everything guestd still says. Returns when it has closed the connection; times out if it does not."""
        said = bytearray()
        try:
            while piece := self.sock.recv(65536):
                said += piece
        except ConnectionResetError:
            pass  # closed while bytes of ours were on their way
        return bytes(said)

    def last_words(self) -> dict[str, Any]:
        """What GOAWAY said, after which guestd has closed the connection."""
        decoder = Decoder()
        decoder.limit = FRAME_LIMIT
        decoder.feed(self.read_until_closed())
        found: dict[str, Any] = {}
        while (frame := decoder.next()) is not None:
            if frame.kind is Kind.GOAWAY:
                found = unpack(frame)
        return found


class Peer:
    """One connection that has said hello. With `bytes_left` it hears so many bytes in all, and then EOFError: a
    connection that is lost in the middle of whatever guestd was saying.
    """

    def __init__(
        self,
        address: str,
        *,
        dialect: str = "native",
        window: int = 1024 * 1024,
        token: str | None = None,
        bytes_left: int | None = None,
    ) -> None:
        self.bytes_left = bytes_left
        #: A PING is answered.
        self.answers = True
        self.sock = dial(address)
        self.goaway: dict[str, Any] | None = None
        self._next = 1
        self._calls: dict[int, Call] = {}
        self._window = window
        self._websocket: WSConnection | None = None
        self._messages: deque[bytes] = deque()
        self._partial = bytearray()
        self._decoder = Decoder()
        self._decoder.limit = FRAME_LIMIT
        try:
            if dialect == "websocket":
                self._upgrade()
            hello: dict[str, object] = {
                "version": 1,
                "agent": "a test",
                "limits": {"window": window, "frame": FRAME_LIMIT},
            }
            if token is not None:
                hello["token"] = token
            # Refused at the door, a peer may be told before it has said a word; then nobody takes what it says.
            with contextlib.suppress(BrokenPipeError):
                if dialect == "native":
                    self.sock.sendall(PREFACE)
                self.send(Kind.HELLO, 0, hello)
            first = self.receive()
            self.hello = first.fields
            if first.kind is Kind.GOAWAY:
                with contextlib.suppress(ConnectionResetError):
                    while self._websocket is None and self.sock.recv(65536):
                        pass  # until it is closed: only then it is in the log
                raise Refused(first.fields)
            assert first.kind is Kind.HELLO
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gone without a word, as a laptop whose lid was shut."""
        self.sock.close()

    # ------------------------------------------------------------------------------------------------ sending

    def send(self, kind: Kind, channel: int, fields: dict[str, object] | bytes) -> None:
        payload = fields if isinstance(fields, bytes) else pack(fields)
        self._send_frame(encode(kind, channel, payload))

    def open(self, op: str, **fields: Any) -> Call:  # noqa: ANN401  whatever a test asks for
        """OPEN, with `from_` for the field `from`."""
        if "from_" in fields:
            fields["from"] = fields.pop("from_")
        call = Call(self, self._next, fields)
        self._calls[self._next] = call
        self._next += 2
        self.send(Kind.OPEN, call.number, {"op": op, **fields})
        return call

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
        """The END of an operation; what it prints is read and kept nowhere."""
        return self.open(op, **fields).end()

    def _send_frame(self, frame: bytes, most: int | None = None) -> None:
        """With `most`, only so many bytes of it: after that the connection is good for nothing but to be lost."""
        if self._websocket is not None:
            frame = self._websocket.send(BytesMessage(data=frame[4:]))
        self.sock.sendall(frame[:most])

    # ---------------------------------------------------------------------------------------------- receiving

    def receive(self) -> Got:
        """The next frame of any channel. EOFError when guestd has closed the connection."""
        while (frame := self._next_frame()) is None or self._answered(frame):
            if frame is not None:
                continue
            data = self._hear(256 * 1024)
            if self._websocket is not None:
                self._take_messages(data)
            elif data:
                self._decoder.feed(data)
            if not data:
                raise EOFError
        payload = bytes(frame.payload)
        fields = {} if frame.kind in {Kind.DATA, Kind.PING, Kind.PONG} else unpack(frame)
        got = Got(frame.kind, frame.channel, payload, fields)
        if got.kind is Kind.GOAWAY:
            self.goaway = fields
        return got

    def _answered(self, frame: Frame) -> bool:
        """As every peer has to, it says that it is there when it is asked."""
        if frame.kind is Kind.PING and self.answers:
            self.send(Kind.PONG, 0, bytes(frame.payload))
        return frame.kind is Kind.PING

    def pump(self) -> None:
        """Receive one frame and give it to its channel."""
        got = self.receive()
        call = self._calls.get(got.channel)
        if call is not None:
            call.queue.append(got)

    def has_input(self, seconds: float) -> bool:
        """Has guestd said something more, within that time?"""
        readable, _, _ = select.select([self.sock], [], [], seconds)
        return bool(readable)

    @property
    def cut_in_a_frame(self) -> bool:
        """Has the beginning of a frame come without its end?"""
        return bool(self._partial) if self._websocket is not None else self._decoder.pending > 0

    def _hear(self, most: int) -> bytes:
        if self.bytes_left is None:
            return self.sock.recv(most)
        if self.bytes_left == 0:
            raise EOFError
        data = self.sock.recv(min(most, self.bytes_left))
        self.bytes_left -= len(data)
        return data

    def _next_frame(self) -> Frame | None:
        if self._websocket is None:
            return self._decoder.next()
        if not self._messages:
            return None
        message = self._messages.popleft()
        decoder = Decoder(limit=FRAME_LIMIT, preface=False)
        decoder.feed(len(message).to_bytes(4, "little") + message)
        return decoder.next()

    def _upgrade(self) -> None:
        self._websocket = WSConnection(ConnectionType.CLIENT)
        self.sock.sendall(self._websocket.send(Request(host="guest", target="/")))
        while True:
            self._websocket.receive_data(self._hear(1) or None)
            for event in self._websocket.events():
                assert isinstance(event, AcceptConnection), event
                return

    def _take_messages(self, data: bytes) -> None:
        assert self._websocket is not None
        if data:
            self._websocket.receive_data(data)
        for event in self._websocket.events():
            if isinstance(event, BytesMessage):
                self._partial += event.data
                if event.message_finished:
                    self._messages.append(bytes(self._partial))
                    self._partial.clear()
            elif isinstance(event, CloseConnection):
                return
            else:
                assert not isinstance(event, TextMessage)


class Refused(Exception):
    """GOAWAY came instead of HELLO."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(str(fields))
        self.code = fields["code"]
        self.message = str(fields["message"])


class Failed(Exception):
    """REJECT or RESET came."""

    def __init__(self, got: Got) -> None:
        super().__init__(f"{got.kind.name} {got.fields}")
        self.kind = got.kind
        self.code = got.fields.get("code")
        self.fields = got.fields


class Call:
    """One channel. `output` by stream number, from where the first byte was asked for."""

    def __init__(self, peer: Peer, number: int, asked: dict[str, Any]) -> None:
        self.number = number
        self.queue: deque[Got] = deque()
        self.output: dict[int, bytearray] = {stream: bytearray() for stream in NAMES if stream}
        #: Where each stream continues.
        self.at: dict[int, int] = {STREAMS["screen"]: 0}
        self.gaps: list[tuple[int, int, int]] = []
        #: Everything that EVENT said, in order.
        self.events: list[dict[str, Any]] = []
        #: Of the picture that was announced last, what has yet to come.
        self.picture_left = 0
        # Behind a gap, where a picture was asked for, there comes one first.
        self._owed_picture = False
        self.final: dict[str, Any] | None = None
        self._peer = peer
        self._asked = asked
        self._accepted: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------------------ reading

    def accepted(self) -> dict[str, Any]:
        """What ACCEPT says."""
        while self._accepted is None:
            self.step()
        return self._accepted

    def end(self) -> dict[str, Any]:
        """Read everything, giving credit for it, and return what END says."""
        while self.final is None:
            self.step()
        return self.final

    def step(self, *, credit: bool = True) -> Got:
        """Take one frame of this channel."""
        while not self.queue:
            self._peer.pump()
        got = self.queue.popleft()
        match got.kind:
            case Kind.ACCEPT:
                self._begin(got.fields)
            case Kind.DATA:
                self._take(got, credit=credit)
            case Kind.EVENT:
                self._heed(got.fields)
            case Kind.END:
                self.final = got.fields
            case Kind.REJECT | Kind.RESET:
                raise Failed(got)
            case _:
                pass
        return got

    def read_until(self, stream: str, size: int, *, credit: bool = True) -> bytes:
        """Read until that much of a stream is here."""
        while len(self.output[STREAMS[stream]]) < size:
            got = self.step(credit=credit)
            assert got.kind is not Kind.END, f"it ended after {self.output!r}: {got.fields}"
        return bytes(self.output[STREAMS[stream]])

    def lines(self, count: int) -> list[str]:
        """The first lines of stdout, as soon as that many are here."""
        while self.output[1].count(b"\n") < count:
            got = self.step()
            assert got.kind is not Kind.END, f"it ended after {bytes(self.output[1])!r}: {got.fields}"
        return self.output[1].decode().splitlines()

    @property
    def stdout(self) -> bytes:
        return bytes(self.output[1])

    @property
    def stderr(self) -> bytes:
        return bytes(self.output[2])

    def _begin(self, fields: dict[str, Any]) -> None:
        self._accepted = fields
        asked: object = self._asked.get("from")
        for name, kept in fields.get("streams", {}).items():
            start = kept["start"]
            if isinstance(asked, dict):
                start = cast("dict[str, Any]", asked).get(name, start)
            elif asked == "end":
                start = kept["end"]
            self.at[STREAMS[name]] = start

    def _heed(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        match event["event"]:
            case "gap":
                stream, start, end = event["stream"], event["from"], event["to"]
                assert self.at[stream] == start < end, (self.at, event)
                self.at[stream] = end
                self.gaps.append((stream, start, end))
                self._owed_picture = self._asked.get("from") == "restore" or "or_restore" in self._asked
            case "restore":
                self._owed_picture = False
                assert self.picture_left == 0, f"a picture began in the middle of another: {event}"
                assert event["offset"] >= self.at[STREAMS["terminal"]], (self.at, event)
                self.picture_left = event["bytes"]
                self.at[STREAMS["terminal"]] = event["offset"]
            case _:
                pass

    def _take(self, got: Got, *, credit: bool) -> None:
        stream, offset, data = read_data(memoryview(got.payload))
        assert offset == self.at[stream], (
            f"{NAMES[stream]}: bytes of {offset} came where {self.at[stream]} was next"
        )
        if stream == STREAMS["screen"]:
            self.picture_left -= len(data)
            assert self.picture_left >= 0, "a picture is larger than was announced"
        else:
            assert self.picture_left == 0, f"{NAMES[stream]} went on before the picture was whole"
            assert not self._owed_picture, f"{NAMES[stream]} went on behind a gap without a picture"
        self.at[stream] += len(data)
        self.output[stream] += data
        if credit:
            self.credit(len(data))

    # ------------------------------------------------------------------------------------------------ sending

    def credit(self, size: int) -> None:
        self._peer.send(Kind.CREDIT, self.number, {"bytes": size})

    def data(self, offset: int, data: bytes, *, most: int | None = None) -> None:
        """Input. With `most`, only so many bytes of the frame leave, as when the connection is lost in its middle."""
        head = data_head(self.number, 0, offset, len(data))
        self._peer._send_frame(head + data, most)

    def event(self, **fields: object) -> None:
        self._peer.send(Kind.EVENT, self.number, fields)

    def reset(self) -> None:
        self._peer.send(Kind.RESET, self.number, {})


# ------------------------------------------------------------------------------------------------ processes of a test


class Watched:
    """A process, held by a descriptor: its number may be used again, its end is an event."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.fd = os.pidfd_open(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        os.close(self.fd)

    @property
    def lives(self) -> bool:
        readable, _, _ = select.select([self.fd], [], [], 0)
        return not readable

    def wait(self) -> None:
        """Until it has ended."""
        readable, _, _ = select.select([self.fd], [], [], PATIENCE)
        assert readable, f"process {self.pid} still runs"


def living() -> dict[int, str]:
    """Every process of the private namespace that has not ended, by name. Zombies have, but for one that goes on
    without its first thread.
    """
    found: dict[int, str] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat") as file:
                    head, _, tail = file.read().rpartition(") ")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if tail[0] not in "ZX" or int(tail.split()[17]) > 1:
                found[int(name)] = head.partition("(")[2]
    return found
