"""Attributes put into OTLP messages at wire level, against the published proto classes: what was there stays, byte for
byte where nobody looks; what nobody can read is refused.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from guestd.relay import otlp_wire
from guestd.relay.otlp_wire import Malformed, with_attributes, with_attributes_json

if TYPE_CHECKING:
    from google.protobuf.message import Message

OURS: dict[str, str | int] = {
    "session.id": "the-session",
    "guestd.boot.id": "böot",
    "empty": "",
    "zero": 0,
    "large": 2**40,
}
KEYS = st.one_of(st.sampled_from(["session.id", "service.name", "guestd.boot.id", ""]), st.text(max_size=200))
VALUES = st.one_of(
    st.text(max_size=300).map(lambda text: AnyValue(string_value=text)),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: AnyValue(int_value=number)),
    st.binary(max_size=50).map(lambda data: AnyValue(bytes_value=data)),
    st.booleans().map(lambda value: AnyValue(bool_value=value)),
)


def _attribute(key: str, value: AnyValue) -> KeyValue:
    return KeyValue(key=key, value=value)


ATTRIBUTES = st.lists(st.builds(_attribute, KEYS, VALUES), max_size=6)


@st.composite
def traces(draw: st.DrawFn) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    for _ in range(draw(st.integers(0, 4))):
        entry = request.resource_spans.add(schema_url=draw(st.text(max_size=20)))
        if draw(st.booleans()):
            entry.resource.attributes.extend(draw(ATTRIBUTES))
            entry.resource.dropped_attributes_count = draw(st.integers(0, 2**32 - 1))
        for _ in range(draw(st.integers(0, 3))):
            span = entry.scope_spans.add().spans.add(name=draw(st.text(max_size=200)))
            span.attributes.extend(draw(ATTRIBUTES))
            span.start_time_unix_nano = draw(st.integers(0, 2**64 - 1))
    return request


def expected(request: Any) -> Any:  # noqa: ANN401  each signal has a class of its own
    """What the proto classes make of it, slowly."""
    wanted = type(request)()
    wanted.CopyFrom(request)
    lists = [getattr(wanted, field.name) for field, _ in wanted.ListFields() if field.number == 1]
    for entry in lists[0] if lists else ():
        kept = [each for each in entry.resource.attributes if each.key not in OURS]
        del entry.resource.attributes[:]
        entry.resource.attributes.extend(kept)
        for key, value in OURS.items():
            added = entry.resource.attributes.add(key=key).value
            if isinstance(value, str):
                added.string_value = value
            else:
                added.int_value = value
    return wanted


@given(traces())
def test_every_resource_of_a_trace_gets_them_and_nothing_else_changes(
    request: ExportTraceServiceRequest,
) -> None:
    edited = with_attributes(request.SerializeToString(), OURS)
    assert ExportTraceServiceRequest.FromString(edited) == expected(request)


@given(traces())
def test_the_same_in_json(request: ExportTraceServiceRequest) -> None:
    edited = with_attributes_json(json_format.MessageToJson(request).encode(), OURS)
    found = json_format.Parse(edited, ExportTraceServiceRequest())
    assert found == expected(request)


def _metrics() -> Message:
    request = ExportMetricsServiceRequest()
    entry = request.resource_metrics.add()
    entry.resource.attributes.add(key="session.id").value.string_value = "a harness's own"
    entry.scope_metrics.add().metrics.add(name="tokens").sum.data_points.add(as_int=5)
    return request


def _logs() -> Message:
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add().body.string_value = "said"
    return request


@pytest.mark.parametrize("request_", [_metrics(), _logs()], ids=["metrics", "logs"])
def test_metrics_and_logs_have_the_same_shape(request_: Message) -> None:
    assert type(request_).FromString(with_attributes(request_.SerializeToString(), OURS)) == expected(
        request_
    )
    as_json = with_attributes_json(json_format.MessageToJson(request_).encode(), OURS)
    assert json_format.Parse(as_json, type(request_)()) == expected(request_)


def test_a_resource_that_comes_in_two_pieces_becomes_one() -> None:
    """Protobuf lets an embedded message come in several pieces; some decoders take only the last."""
    pieces = b""
    for key in ("first", "session.id", "second"):
        piece = ResourceSpans()
        piece.resource.attributes.add(key=key).value.string_value = key
        pieces += piece.SerializeToString()
    message = b"\x0a" + bytes([len(pieces)]) + pieces
    edited = with_attributes(message, OURS)
    entry = ExportTraceServiceRequest.FromString(edited).resource_spans[0]
    assert [each.key for each in entry.resource.attributes] == ["first", "second", *OURS]
    inside = edited[3:] if edited[1] & 0x80 else edited[2:]
    assert [number for number, *_ in otlp_wire._Reader().fields(memoryview(inside))] == [1]


def test_fields_that_nobody_knows_yet_pass() -> None:
    request = ExportTraceServiceRequest()
    request.resource_spans.add()
    unknown = (
        b"\xfa\x07\x03new\xf9\x07\x01\x02\x03\x04\x05\x06\x07\x08\xfd\x07\x01\x02\x03\x04\xf8\x07\x96\x01"
    )
    edited = with_attributes(request.SerializeToString() + unknown, OURS)
    assert edited.endswith(unknown)


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\x0b\x0c",
        b"\x00\x00",
        b"\xff" * 20,
        b"\x0a\x02\x0a\x05",
        b"\x09\x01",
        b"<html>",
    ],
)
def test_what_is_no_protobuf_is_refused(message: bytes) -> None:
    with pytest.raises(Malformed):
        with_attributes(message, OURS)


@given(traces(), st.data())
def test_a_message_that_is_cut_off_is_refused_or_is_one(
    request: ExportTraceServiceRequest, data: st.DataObject
) -> None:
    whole = request.SerializeToString()
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        edited = with_attributes(cut, OURS)
    except Malformed:
        return
    assert ExportTraceServiceRequest.FromString(edited) is not None


@given(st.binary(max_size=200))
def test_nothing_else_is_ever_raised(data: bytes) -> None:
    for edit in (with_attributes, with_attributes_json):
        with contextlib.suppress(Malformed):
            edit(data, OURS)


@pytest.mark.parametrize(
    "text",
    [
        b"[]", b"1", b"{", b'{"resourceSpans": 1}', b'{"resourceSpans": [1]}', b'{"resourceLogs": [{"resource": 1}]}',
        b'{"resourceSpans": [{"resource": {"attributes": {}}}]}', b"[" * 100_000, b"\xff\xfe",
    ],
)  # fmt: skip
def test_what_is_no_export_in_json_is_refused(text: bytes) -> None:
    with pytest.raises(Malformed):
        with_attributes_json(text, OURS)


def test_json_keeps_what_it_has_no_word_for() -> None:
    found = json.loads(
        with_attributes_json(b'{"resourceSpans":[{"resource":null,"new":[1.5,"\\ud800"]}],"more":{}}', OURS)
    )
    assert found["more"] == {}
    assert found["resourceSpans"][0]["new"] == [1.5, "\ud800"]
    assert len(found["resourceSpans"][0]["resource"]["attributes"]) == len(OURS)


def test_a_small_message_does_not_become_a_giant() -> None:
    """Each resource grows by the attributes, and an empty one has two bytes."""
    with pytest.raises(Malformed, match="resources"):
        with_attributes(b"\x0a\x00" * (otlp_wire.RESOURCES_MAX + 1), OURS)
    with pytest.raises(Malformed, match="resources"):
        with_attributes_json(
            json.dumps({"resourceSpans": [{}] * (otlp_wire.RESOURCES_MAX + 1)}).encode(), OURS
        )
    fields = b"\x10\x00" * (otlp_wire.FIELDS_MAX + 1)
    with pytest.raises(Malformed, match="fields"):
        with_attributes(fields, OURS)
