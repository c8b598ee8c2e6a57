"""Trace contexts: read strictly, passed on whole, sampled as the variables say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.session.trace import Trace, Tracer, read_trace
from guestd.telemetry.switch import read_headers

_ID, _SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_one_that_is_right() -> None:
    found = read_trace(f"00-{_ID}-{_SPAN}-01", "a=b")
    assert found == Trace(_ID, _SPAN, 1, "a=b")
    assert found is not None
    assert found.variables("1" * 16) == {"TRACEPARENT": f"00-{_ID}-{'1' * 16}-01", "TRACESTATE": "a=b"}


@pytest.mark.parametrize(
    "text",
    [
        "", "00", f"00-{_ID}-{_SPAN}", f"00-{_ID}-{_SPAN}-01-more", f"ff-{_ID}-{_SPAN}-01", f"00-{'0' * 32}-{_SPAN}-01",
        f"00-{_ID}-{'0' * 16}-01", f"00-{_ID.upper()}-{_SPAN}-01", f"00-{_ID[:-1]}-{_SPAN}-01", f"0-{_ID}-{_SPAN}-01",
        f"00-{_ID}-{_SPAN}-1", f"00-{_ID}-{_SPAN}-zz",
    ],
)  # fmt: skip
def test_what_is_no_context(text: str) -> None:
    assert read_trace(text) is None


def test_a_later_version_may_say_more() -> None:
    assert read_trace(f"01-{_ID}-{_SPAN}-03-what-ever") == Trace(_ID, _SPAN, 1, "")


@given(st.text(max_size=80))
def test_nonsense_is_no_context(text: str) -> None:
    found = read_trace(text)
    assert found is None or read_trace(found.variables(found.parent)["TRACEPARENT"]) == found


def _flags(environ: dict[str, str], parent: str | None) -> int:
    contexts = [] if parent is None else [{"TRACEPARENT": f"00-{_ID}-{_SPAN}-{parent}"}]
    return Tracer(environ).trace(*contexts).flags


@pytest.mark.parametrize(
    ("sampler", "argument", "root", "sampled", "unsampled"),
    [
        ("", "", 1, 1, 0),
        ("parentbased_always_on", "", 1, 1, 0),
        ("parentbased_always_off", "", 0, 1, 0),
        ("always_on", "", 1, 1, 1),
        ("always_off", "", 0, 0, 0),
        ("parentbased_traceidratio", "0", 0, 1, 0),
        ("traceidratio", "1", 1, 1, 1),
        ("traceidratio", "nonsense", 1, 1, 1),
        ("unheard_of", "", 1, 1, 1),
    ],
)
def test_the_sampler_decides(sampler: str, argument: str, root: int, sampled: int, unsampled: int) -> None:
    environ = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}
    assert (_flags(environ, None), _flags(environ, "01"), _flags(environ, "00")) == (root, sampled, unsampled)


def test_the_first_context_that_is_one_is_gone_on_with() -> None:
    tracer = Tracer({})
    found = tracer.trace(
        {}, {"TRACEPARENT": "nonsense"}, {"TRACEPARENT": f"00-{_ID}-{_SPAN}-00", "TRACESTATE": "x=y"}
    )
    assert found == Trace(_ID, _SPAN, 0, "x=y")
    assert tracer.trace().trace_id != tracer.trace().trace_id


def test_headers_of_a_file() -> None:
    assert read_headers("# ours\n\nAuthorization: Bearer a:b\n X-Team :  core \n") == {
        "authorization": "Bearer a:b", "x-team": "core",
    }  # fmt: skip
    with pytest.raises(ValueError, match="line 2"):
        read_headers("a: b\nnonsense\n")
