"""Audit records as OpenTelemetry's log records: the line is the body, its plain fields are attributes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord

from guestd.telemetry.outlet.spans import clean

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

_NANO = 1_000_000_000
#: Results that say that somebody was kept out, or something lost.
_ALARMING = {"refused", "dropped"}


def record_of(line: bytes, resource: Resource, scope: InstrumentationScope) -> ReadableLogRecord:
    """The record of a line of the audit log."""
    fields = cast("dict[str, Any]", json.loads(line))
    event = str(fields.get("event", ""))
    odd = event in _ALARMING or "broken" in fields or fields.get("result", "accepted") != "accepted"
    return ReadableLogRecord(
        LogRecord(
            timestamp=int(float(fields.get("at", 0.0)) * _NANO),
            observed_timestamp=int(float(fields.get("at", 0.0)) * _NANO),
            severity_number=SeverityNumber.WARN if odd else SeverityNumber.INFO,
            severity_text="WARN" if odd else "INFO",
            body=line.decode("ascii", "replace"),
            attributes={
                f"guestd.audit.{name}": clean(cast("object", value))
                for name, value in fields.items()
                if isinstance(value, str | bool | int | float | list)
            },
            event_name=f"guestd.{event}",
        ),
        resource,
        scope,
    )
