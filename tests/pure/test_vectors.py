"""docs/protocol.md, tests/vectors/*.json and guestd's own code say the same, byte for byte and row by row.

The page is the norm for clients in other languages, so whatever it shows must be what guestd does.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest

from guestd import errors
from guestd.config import Settings, keys_of
from guestd.errors import GuestdError, ProtocolViolation
from guestd.wire import frames
from guestd.wire.channel import ChannelState, Credit, Half, Window
from guestd.wire.frames import Decoder, Frame, Kind, encode, parse_message, read_data
from guestd.wire.hello import DEFAULT_WINDOW, Hello
from guestd.wire.messages import pack, unpack
from guestd.wire.result import EndedBy, Outcome, Result

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text()


def load(name: str) -> Any:  # noqa: ANN401  JSON has any shape
    return json.loads((ROOT / "tests" / "vectors" / f"{name}.json").read_text())


FRAMES: list[dict[str, Any]] = load("frames")
REFUSED: list[dict[str, Any]] = load("refused")
SESSION: list[dict[str, Any]] = load("session")
CHANNEL: dict[str, Any] = load("channel")
CREDIT: dict[str, Any] = load("credit")
BY_NAME = {each["name"]: each for each in FRAMES}


def block(title: str) -> bytes:
    """The bytes of the page's hex block that begins with this comment."""
    found = re.findall(rf"^```hex\n# {re.escape(title)}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{title}: {len(found)} blocks on the page"
    return bytes.fromhex(" ".join(line.partition("#")[0] for line in found[0].splitlines()))


def table(heading: str, first: str) -> list[list[str]]:
    """The rows of the first table behind a heading whose first column is called so; cells without code marks."""
    text = PAGE.partition(f"\n{heading}\n")[2]
    assert text, heading
    lines = text[text.index(f"| {first} |") :].splitlines()
    rows: list[list[str]] = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    assert rows, heading
    return rows


def plain(value: Any) -> Any:  # noqa: ANN401  JSON has any shape
    """JSON has no bytes: `{"$bin": hex}` stands for them."""
    if isinstance(value, dict):
        found = cast("dict[str, Any]", value)
        if set(found) == {"$bin"}:
            return bytes.fromhex(found["$bin"])
        return {name: plain(each) for name, each in found.items()}
    if isinstance(value, list):
        return [plain(each) for each in cast("list[Any]", value)]
    return value


def payload_of(vector: dict[str, Any]) -> bytes:
    """The payload as guestd builds it from what the vector says it means."""
    if "data" in vector:
        data = vector["data"]
        body = bytes.fromhex(data["bytes"])
        return frames.data_head(vector["channel"], data["stream"], data["offset"], len(body))[9:] + body
    if "payload" in vector:
        return bytes.fromhex(vector["payload"])
    return pack(plain(vector["fields"]))


@pytest.mark.parametrize("vector", FRAMES, ids=[each["name"] for each in FRAMES])
class TestFrames:
    def test_guestd_encodes_it_so(self, vector: dict[str, Any]) -> None:
        frame = encode(Kind[vector["kind"]], vector["channel"], payload_of(vector))
        assert frame.hex() == vector["frame"]
        assert frame[4:].hex() == vector["message"]

    def test_guestd_decodes_it_so_in_both_dialects(self, vector: dict[str, Any]) -> None:
        decoder = Decoder(preface=False)
        decoder.feed(bytes.fromhex(vector["frame"]))
        native = decoder.next()
        message = parse_message(memoryview(bytes.fromhex(vector["message"])), frames.HANDSHAKE_FRAME_LIMIT)
        assert native is not None
        for frame in (native, message):
            assert (frame.kind.name, frame.channel) == (vector["kind"], vector["channel"])
            if "data" in vector:
                data = read_data(frame.payload)
                found = {"stream": data.stream, "offset": data.offset, "bytes": bytes(data.data).hex()}
                assert found == vector["data"]
            elif "fields" in vector:
                assert unpack(frame) == plain(vector["fields"])
            else:
                assert bytes(frame.payload).hex() == vector["payload"]

    def test_the_page_shows_it_so(self, vector: dict[str, Any]) -> None:
        if any(vector["name"] in part["frames"] for part in SESSION):
            shown = re.findall(rf"^# (?:vector: )?{vector['name']}$", PAGE, re.MULTILINE)
            assert shown, f"{vector['name']} is not on the page"
        else:
            assert block(f"vector: {vector['name']}").hex() == vector["frame"]


def test_there_is_a_vector_for_every_kind() -> None:
    assert {each["kind"] for each in FRAMES} == set(Kind.__members__)


def test_the_page_has_no_vector_that_the_files_have_not() -> None:
    assert set(re.findall(r"^# vector: (.*)$", PAGE, re.MULTILINE)) <= set(BY_NAME)


def test_the_preface() -> None:
    assert block("preface") == frames.PREFACE
    assert frames.PREFACE[-1] == frames.VERSION


class TestSession:
    """The annotated session is what its frames are, and is legal."""

    @pytest.mark.parametrize("part", SESSION, ids=[each["from"] for each in SESSION])
    def test_its_bytes(self, part: dict[str, Any]) -> None:
        assert part["bytes"] == block(f"session: {part['from']}").hex()
        whole = frames.PREFACE.hex() + "".join(BY_NAME[name]["frame"] for name in part["frames"])
        assert part["bytes"] == whole

    def test_both_sides_take_it(self) -> None:
        client, server = ChannelState(opener=True), ChannelState(opener=False)
        sides = {"client": (client, server), "server": (server, client)}
        for part in SESSION:
            decoder = Decoder()
            decoder.feed(bytes.fromhex(part["bytes"]))
            sender, receiver = sides[part["from"]]
            while (frame := decoder.next()) is not None:
                if frame.kind is Kind.HELLO:
                    Hello.from_map(unpack(frame))
                else:
                    sender.sent(frame.kind)
                    receiver.received(frame.kind)
            assert decoder.pending == 0
        assert client.closed
        assert server.closed


class TestRefused:
    @pytest.mark.parametrize("vector", REFUSED, ids=[each["name"] for each in REFUSED])
    def test_guestd_refuses_it(self, vector: dict[str, Any]) -> None:
        data = bytes.fromhex(vector["frame"])
        with pytest.raises(ProtocolViolation) as raised:
            self.take_native(data, vector["limit"])
        assert raised.value.code == vector["code"]
        if vector["dialect"] == "both":
            with pytest.raises(ProtocolViolation):
                self.take(parse_message(memoryview(data[4:]), vector["limit"]))

    def take_native(self, data: bytes, limit: int) -> None:
        decoder = Decoder(limit=limit, preface=False)
        decoder.feed(data)
        frame = decoder.next()
        assert frame is not None
        self.take(frame)

    def take(self, frame: Frame) -> None:
        if frame.kind is Kind.DATA:
            read_data(frame.payload)
        else:
            unpack(frame)

    def test_the_page_lists_them(self) -> None:
        rows = table("## Malformed input", "vector")
        assert [row[0] for row in rows] == [each["name"] for each in REFUSED]
        for row, vector in zip(rows, REFUSED, strict=True):
            shown, cut, _ = row[1].partition("00…")
            assert vector["frame"].startswith(bytes.fromhex(shown).hex())
            assert cut or bytes.fromhex(shown).hex() == vector["frame"]


class TestTables:
    """The page's tables against the code's."""

    def test_kinds(self) -> None:
        rows = table("## Frames", "kind")
        assert {row[0]: int(row[1], 16) for row in rows} == {kind.name: int(kind) for kind in Kind}
        for kind, _, channel, *_ in rows:
            number = 0 if channel == "0" else 1
            parse_message(memoryview(bytes([Kind[kind]]) + number.to_bytes(4, "little")), 100)

    def test_channel_states(self) -> None:
        found: dict[tuple[str, str, str], str] = {}
        for sender, state, kinds, after in table("## Channels", "sender"):
            for kind in kinds.split(", "):
                found[sender.split()[0], state.lower(), kind] = after.lower()
        in_file = {
            (side, half, kind): after
            for side in ("opener", "answerer")
            for half, row in CHANNEL[side].items()
            for kind, after in row.items()
        }
        in_code: dict[tuple[str, str, str], str] = {}
        for side in ("opener", "answerer"):
            for half in Half:
                for kind in Kind:
                    state = ChannelState(opener=side == "opener")
                    state.mine, state.theirs = half, Half.LIVE
                    if state.may_send(kind):
                        state.sent(kind)
                        in_code[side, half.value, kind.name] = state.mine.value
                        assert (state.theirs is Half.FINAL) is (kind.name in CHANNEL["ends_both"])
        assert found == in_file == in_code

    def test_credit(self) -> None:
        rows = iter(table("## Credit", "step")[1:])
        credit, window = Credit(CREDIT["window"]), Window(CREDIT["window"])
        for step in CREDIT["steps"]:
            granted = 0
            if "send" in step:
                credit.spend(step["send"])
                window.received(step["send"])
            else:
                granted = window.consumed(step["consume"])
                credit.grant(granted)
            assert granted == step.get("credit", 0)
            assert credit.available == step["sender_may_send"]
            _, may_send, sent = next(rows)
            assert int(may_send) == credit.available
            assert sent == (f"{{bytes: {granted}}}" if granted else "")
        assert next(rows, None) is None

    def test_errors(self) -> None:
        in_code = {
            each.code: (str(each.exit_status), str(each.http_status))
            for each in vars(errors).values()
            if isinstance(each, type) and issubclass(each, GuestdError)
        }
        rows = table("## Errors", "code")
        assert {row[0]: (row[3], row[4]) for row in rows} == in_code
        assert len(rows) == len(in_code)

    def test_result_fields(self) -> None:
        shown = [name for row in table("## Results", "field") for name in row[0].split(", ")]
        sent = set(Result("a", Outcome.SIGNALED, signal=9, errno=2).to_map()) | {"gaps"}
        assert set(shown) == sent
        assert len(shown) == len(sent)
        outcomes = next(row[2] for row in table("## Results", "field") if row[0] == "outcome")
        assert all(each.value in outcomes for each in Outcome)
        enders = next(row[2] for row in table("## Results", "field") if row[0] == "ended_by")
        assert all(each.value in enders for each in EndedBy)

    def test_hello_fields(self) -> None:
        shown = {row[0] for row in table("## Hello", "field")}
        sent = Hello(
            "x", token="t", identity={"boot_id": "", "session_id": "", "generation": 0, "previous": []}
        ).to_map()
        limits = cast("dict[str, int]", sent["limits"])
        assert shown == set(sent) | {f"limits.{name}" for name in limits}
        least = Hello.from_map({"version": 1})
        assert (least.frame, least.window, least.channels) == (4 << 20, 256 << 10, 0)
        assert DEFAULT_WINDOW == 256 << 10

    def test_the_frame_limits_on_the_page(self) -> None:
        assert frames.HANDSHAKE_FRAME_LIMIT == 64 << 10
        assert frames.FRAME_LIMIT == 4 << 20
        assert frames.PING_LIMIT == 64

    def test_every_setting_it_names_exists(self) -> None:
        known = set(keys_of(Settings))
        named = set(re.findall(r"`((?:limits|command|access)\.[a-z_]+|token_file)`", PAGE))
        assert named
        assert named <= known
