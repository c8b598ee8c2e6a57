"""Trace contexts, as W3C has them: which trace something belongs to, below which span, and whether it is recorded.

Pure. What a caller sends is read strictly, as the recommendation asks: anything odd is no context, and a new trace
begins.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEX = frozenset("0123456789abcdef")
_SAMPLED = 1
#: Every 64-bit number is below it: a ratio of 1.
_WHOLE = 1 << 64
TRACEPARENT, TRACESTATE = "TRACEPARENT", "TRACESTATE"


class Trace(NamedTuple):
    """Which trace. `parent`: the span above, empty at the top. `flags`: bit 0 says that it is recorded."""

    trace_id: str
    parent: str
    flags: int
    state: str

    @property
    def sampled(self) -> bool:
        return bool(self.flags & _SAMPLED)

    def variables(self, span_id: str) -> dict[str, str]:
        """What a program is told whose own spans are to hang below that span."""
        found = {TRACEPARENT: f"00-{self.trace_id}-{span_id}-{self.flags:02x}"}
        if self.state:
            found[TRACESTATE] = self.state
        return found

    def below(self, span_id: str) -> Trace:
        """The same trace, below that span."""
        return self._replace(parent=span_id)


def read_trace(parent: str, state: str = "") -> Trace | None:
    """The context that a traceparent says; None when it says none."""
    fields = parent.strip().split("-")
    if len(fields) < 4:
        return None
    version, trace_id, span_id, flags = fields[:4]
    if not (_is_hex(version, 2) and _is_hex(trace_id, 32) and _is_hex(span_id, 16) and _is_hex(flags, 2)):
        return None
    # A later version may have more fields; this one has four. ff is no version.
    if version == "ff" or (version == "00" and len(fields) != 4):
        return None
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return Trace(trace_id, span_id, int(flags, 16) & _SAMPLED, state)


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and _HEX.issuperset(text)


class Tracer:
    """Begins traces, and goes on with those of callers, by the sampler that OTEL_TRACES_SAMPLER names."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        name = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() or "parentbased_always_on"
        self._heeds_parent = name.startswith("parentbased_")
        self._ratio = _ratio(name.removeprefix("parentbased_"), environ.get("OTEL_TRACES_SAMPLER_ARG", ""))

    def trace(self, *contexts: Mapping[str, str]) -> Trace:
        """The trace that the first of these variables name that name one; else a new one."""
        for each in contexts:
            found = read_trace(each.get(TRACEPARENT, ""), each.get(TRACESTATE, ""))
            if found is not None:
                return found if self._heeds_parent else found._replace(flags=self._sample(found.trace_id))
        trace_id = os.urandom(16).hex()
        return Trace(trace_id, "", self._sample(trace_id), "")

    def _sample(self, trace_id: str) -> int:
        # The low half decides, as the SDKs have it, so that all who look at the ratio decide alike.
        return int(int(trace_id[16:], 16) < self._ratio * _WHOLE)


def _ratio(name: str, argument: str) -> float:
    if name == "always_off":
        return 0.0
    if name == "traceidratio":
        try:
            return min(1.0, max(0.0, float(argument)))
        except ValueError:
            return 1.0
    return 1.0
