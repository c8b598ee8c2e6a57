"""What docs/protocol.md promises of a running guestd: its fields, its answers, and its patience with nonsense."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from guestd.wire import frames
from guestd.wire.frames import Decoder, Frame, Kind, encode, read_data
from guestd.wire.messages import pack, unpack
from tests.support.server import Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text()
VECTORS = ROOT / "tests" / "vectors"
FRAMES = {each["name"]: each for each in json.loads((VECTORS / "frames.json").read_text())}
REFUSED: list[dict[str, Any]] = json.loads((VECTORS / "refused.json").read_text())
#: A list of a list is right for no field.
WRONG: list[list[str]] = [[]]
SESSION: list[dict[str, Any]] = json.loads((VECTORS / "session.json").read_text())


def documented(heading: str) -> list[str]:
    """The names in the first column of the first table behind a heading."""
    section = PAGE.partition(f"\n{heading}\n")[2].partition("\n#")[0]
    names: list[str] = []
    for line in section.splitlines():
        if line.startswith("| `"):
            names += re.findall(r"`([a-z_]+)`", line.split("|")[1])
        elif names and not line.startswith("|"):
            break
    assert names, heading
    return names


class Peer:
    """A client of a few lines: what it sends is up to the test."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(server.path)
        self.decoder = Decoder(limit=frames.FRAME_LIMIT)
        self.number = -1

    def close(self) -> None:
        self.socket.close()

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def greet(self) -> dict[str, Any]:
        self.say(frames.PREFACE + encode(Kind.HELLO, 0, pack({"version": 1})))
        return self.hear(Kind.HELLO)

    def hear(self, *kinds: Kind) -> dict[str, Any]:
        """The map of the next frame of these kinds."""
        return unpack(self.frame(*kinds))

    def data(self) -> bytes:
        """The next DATA's bytes."""
        return bytes(read_data(self.frame(Kind.DATA).payload).data)

    def frame(self, *kinds: Kind) -> Frame:
        while True:
            while (frame := self.decoder.next()) is None:
                data = self.socket.recv(65536)
                assert data, "the connection ended"
                self.decoder.feed(data)
            if frame.kind in kinds:
                return frame

    def ask(self, op: str, **fields: object) -> dict[str, Any]:
        """The last word on a request."""
        self.number += 2
        self.say(encode(Kind.OPEN, self.number, pack({"op": op, **fields})))
        return self.hear(Kind.REJECT, Kind.END, Kind.RESET)

    def is_closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture(scope="module")
def guest() -> Iterator[Server]:
    with serving() as server:
        with contextlib.closing(Peer(server)) as first:
            # Its launcher, which starts all shells, stays for as long as guestd does: no test's to leak.
            first.greet()
            first.ask("shell", id="first", argv=["true"], detach=True)
            first.ask("wait", id="first")
        yield server


@pytest.fixture
def peer(guest: Server) -> Iterator[Peer]:
    with contextlib.closing(Peer(guest)) as made:
        yield made
    # A job outlives its connection, and one that ends with it is not gone in the same moment.
    with contextlib.closing(Peer(guest)) as last:
        last.greet()
        for row in last.ask("ps")["jobs"]:
            if row["state"] != "ended":
                last.ask("kill", id=row["id"], grace=0)


def test_the_session_on_the_page(peer: Peer) -> None:
    """The page's bytes get the page's answer: the same frames, with the same fields in them."""
    client, server = SESSION
    peer.say(bytes.fromhex(client["bytes"]))
    found: dict[str, Any] = {}
    for name in server["frames"]:
        shown = FRAMES[name]
        found = peer.hear(*Kind)
        assert set(found) == set(shown["fields"]), name
        for field, value in shown["fields"].items():
            if isinstance(value, dict):
                assert set(found[field]) == set(cast("dict[str, object]", value)), f"{name}: {field}"
    assert found["status"] == 0


@pytest.mark.parametrize(
    "op",
    [
        "exec",
        "attach",
        "wait",
        "kill",
        "shell",
        "busy",
        "timers",
        "events",
        "stop",
        "resume",
        "upgrade",
        "mount",
        "unmount",
    ],
)
def test_every_field_is_read_and_judged_by_its_name(peer: Peer, op: str) -> None:
    """What is documented and not read would be ignored, and so would a wrong value of it."""
    peer.greet()
    starts = op in {"exec", "shell"}
    right = {"argv": ["true"]} if starts else {"id": "page-fields"}
    if not starts:
        peer.ask("exec", id="page-fields", argv=["true"])
    for field in [*documented(f"### {op}"), "window"]:
        wrong: dict[str, object] = {field: WRONG}
        answer = peer.ask(op, **(wrong if field == "shell" else {**right, **wrong}))
        assert answer.get("code") == "bad_request", f"{field}: {answer}"
        assert answer["field"].startswith(field), answer


def test_every_operation_is_on_the_page(peer: Peer) -> None:
    peer.greet()
    answer = peer.ask("no such thing")
    assert answer["code"] == "unsupported"
    # One heading for each, or for those that are much alike.
    headings = re.findall(r"^### ([a-z]+(?:, [a-z]+)*)$", PAGE, re.MULTILINE)
    named = [name for heading in headings for name in heading.split(", ")]
    named += re.findall(r'^OPEN `op: "([a-z]+)"`', PAGE, re.MULTILINE)
    assert answer["expected"].split(", ") == sorted(named)


def test_a_job_has_the_fields_that_are_shown(peer: Peer) -> None:
    peer.greet()
    peer.say(encode(Kind.OPEN, 1001, pack({"op": "exec", "argv": ["true"]})))
    accept = peer.hear(Kind.ACCEPT)
    assert set(accept) == set(documented("ACCEPT comes when the program runs, or is known not to:"))
    result = peer.hear(Kind.END)
    always = set(documented("## Results")) - {"signal_name", "errno_name"}
    assert set(result) == always
    assert set(peer.ask("exec", shell="kill -9 $$")) == always | {"signal_name"}
    assert set(peer.ask("exec", argv=["/nowhere"])) == always | {"errno_name"}
    assert set(peer.ask("wait", id=result["id"])) == always - {"gaps"}
    row = next(each for each in peer.ask("ps")["jobs"] if each["id"] == result["id"])
    assert set(row) == set(accept) - {"created"} | {
        "command",
        "user",
        "cwd",
        "background",
        "attached",
        "survives",
        "age",
        "result",
    }


def test_status_has_the_fields_that_are_shown(peer: Peer) -> None:
    peer.greet()
    text = PAGE.partition("\n### status\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z_]+)`", text)) == set(peer.ask("status"))


@pytest.mark.parametrize("vector", REFUSED, ids=[each["name"] for each in REFUSED])
def test_a_malformed_frame_ends_its_connection_and_nothing_else(
    guest: Server, peer: Peer, vector: dict[str, Any]
) -> None:
    with contextlib.closing(Peer(guest)) as bystander:
        bystander.greet()
        peer.greet()
        if vector["name"] == "data-too-short":  # DATA is only looked at where there is a channel for it
            peer.say(encode(Kind.OPEN, 1, pack({"op": "exec", "argv": ["cat"], "stdin": "stream"})))
        data = bytes.fromhex(vector["frame"])
        if vector["name"] == "length-over-the-limit":  # after the hello the limit is larger
            data = (frames.FRAME_LIMIT + 1).to_bytes(4, "little")
        peer.say(data)
        goaway = peer.hear(Kind.GOAWAY)
        assert (goaway["code"], bool(goaway["message"])) == (vector["code"], True)
        assert peer.is_closed()
        assert bystander.ask("exec", argv=["true"])["status"] == 0


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"nonsense", "protocol"),
        (b"\x00guestd\x02", "protocol"),
        (b"\x00guesswork", "protocol"),
        (frames.PREFACE + encode(Kind.PING, 0), "protocol"),
        (frames.PREFACE + encode(Kind.OPEN, 1, pack({"op": "ps"})), "protocol"),
        (frames.PREFACE + (65537).to_bytes(4, "little"), "protocol"),
        (frames.PREFACE + encode(Kind.HELLO, 0, pack({"version": 0})), "version"),
        (frames.PREFACE + encode(Kind.HELLO, 0, pack({"version": "1"})), "bad_request"),
        (frames.PREFACE + encode(Kind.HELLO, 0, pack({})), "bad_request"),
    ],
    ids=["nonsense", "another preface", "half a preface", "PING first", "OPEN first", "a long hello", "version 0",
         "a version in text", "no version"],
)  # fmt: skip
def test_a_wrong_beginning(peer: Peer, said: bytes, code: str) -> None:
    peer.say(said)
    assert peer.hear(Kind.GOAWAY)["code"] == code
    assert peer.is_closed()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"426"),
        (b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", b"426"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 17_000, b"431"),
    ],
    ids=["GET", "POST", "a long head"],
)
def test_http_that_is_no_websocket(peer: Peer, head: bytes, status: bytes) -> None:
    peer.say(head)
    assert peer.socket.recv(12) == b"HTTP/1.1 " + status


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (encode(Kind.DATA, 1, bytes(9) + bytes(262145)), "flow_control"),
        (encode(Kind.DATA, 1, b"\0" + (5).to_bytes(8, "little") + b"x"), "bad_offset"),
        (encode(Kind.DATA, 1, b"\1" + bytes(8) + b"x"), "bad_request"),
        (encode(Kind.EVENT, 1, pack({"event": "eof", "offset": 7})), "bad_offset"),
        (encode(Kind.EVENT, 1, pack({"event": "eof"})), "bad_request"),
        (encode(Kind.EVENT, 1, pack({"event": "signal", "signal": "NOPE"})), "bad_request"),
        (encode(Kind.EVENT, 1, pack({"event": "signal", "signal": "9" * 5000})), "bad_request"),
        (encode(Kind.CREDIT, 1, pack({"bytes": 0})), "bad_request"),
        (encode(Kind.CREDIT, 1, pack({"bytes": "many"})), "bad_request"),
    ],
    ids=["over the credit", "a hole", "into stdout", "an end beyond", "an end nowhere", "no signal", "a long signal",
         "no credit", "credit in text"],
)  # fmt: skip
def test_a_mistake_on_a_channel_resets_that_channel(peer: Peer, frame: bytes, code: str) -> None:
    peer.greet()
    asked = {"op": "exec", "argv": ["cat"], "stdin": "stream", "kill_on_disconnect": True, "grace": 0}
    peer.number = 1
    peer.say(encode(Kind.OPEN, 1, pack(asked)))
    peer.hear(Kind.ACCEPT)
    peer.say(frame)
    assert peer.hear(Kind.RESET)["code"] == code
    assert peer.ask("exec", argv=["true"])["status"] == 0
    # Answered, the number is free again.
    peer.say(encode(Kind.RESET, 1, pack({})) + encode(Kind.OPEN, 1, pack({"op": "exec", "argv": ["true"]})))
    assert peer.hear(Kind.END, Kind.REJECT, Kind.RESET)["status"] == 0


def test_what_is_late_or_unknown_is_ignored(peer: Peer) -> None:
    peer.greet()
    for kind in (Kind.DATA, Kind.EVENT, Kind.CREDIT, Kind.RESET, Kind.ACCEPT, Kind.END):
        peer.say(encode(kind, 77, bytes(9)))
    peer.number = 1
    peer.say(
        encode(
            Kind.OPEN, 1, pack({"op": "exec", "argv": ["cat"], "stdin": "stream", "in a later version": [1]})
        )
    )
    peer.say(encode(Kind.EVENT, 1, pack({"event": "of a later version"})))
    peer.say(encode(Kind.EVENT, 1, pack({"event": "eof", "offset": 0})))
    assert peer.hear(Kind.END, Kind.REJECT, Kind.RESET)["status"] == 0


@pytest.mark.parametrize("number", [1, 2, 4, 2**32 - 2])
def test_a_number_that_is_not_free_or_not_a_clients(peer: Peer, number: int) -> None:
    peer.greet()
    asked = {"op": "exec", "argv": ["cat"], "stdin": "stream", "kill_on_disconnect": True, "grace": 0}
    peer.say(encode(Kind.OPEN, 1, pack(asked)))
    peer.hear(Kind.ACCEPT)
    peer.say(encode(Kind.OPEN, number, pack({"op": "ps"})))
    assert peer.hear(Kind.GOAWAY)["code"] == "protocol"
    assert peer.is_closed()


def test_text_that_is_no_utf_8_is_the_systems_own_bytes(peer: Peer) -> None:
    """As str with those bytes as they are, or as bin: the same argument; and it comes back in answers."""
    peer.greet()
    word = b"caf\xe9 \xff\xfe"
    for given in (word, word.decode("utf-8", "surrogateescape")):
        peer.number += 2
        peer.say(encode(Kind.OPEN, peer.number, pack({"op": "exec", "argv": ["printf", "%s", given]})))
        assert peer.data() == word
        result = peer.hear(Kind.END)
        row = next(each for each in peer.ask("ps")["jobs"] if each["id"] == result["id"])
        assert os.fsencode(row["command"][2]) == word


def test_no_frame_is_longer_than_the_client_takes(peer: Peer) -> None:
    """A client with little memory says so in its hello."""
    least = 16 * 1024
    peer.decoder = Decoder(limit=least)
    peer.say(
        frames.PREFACE
        + encode(Kind.HELLO, 0, pack({"version": 1, "limits": {"frame": least, "window": 2**30}}))
    )
    peer.say(encode(Kind.OPEN, 1, pack({"op": "exec", "shell": "head -c 1000000 /dev/zero"})))
    assert peer.hear(Kind.END)["streams"]["stdout"]["bytes"] == 1_000_000
