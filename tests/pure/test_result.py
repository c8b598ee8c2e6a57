"""An end is told exactly or called unknown, and becomes one exit status by the shells' convention."""

from __future__ import annotations

import errno
import signal
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.wire.frames import Frame, Kind
from guestd.wire.messages import pack, unpack
from guestd.wire.result import EndedBy, Outcome, Result, signal_name, signal_number

seconds = st.none() | st.floats(0, 1e12)
group = st.fixed_dictionaries(
    {
        "count": st.integers(0, 500),
        "processes": st.lists(
            st.fixed_dictionaries({"pid": st.integers(1, 2**22), "name": st.text(max_size=16)}), max_size=3
        ),
    }
)
results = st.builds(
    Result,
    id=st.text(max_size=20),
    outcome=st.sampled_from(Outcome),
    kind=st.sampled_from(["command", "shell"]),
    code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    ended_by=st.none() | st.sampled_from(EndedBy),
    stage=st.none() | st.sampled_from(["exec", "cwd", "user"]),
    errno=st.none() | st.integers(1, 133),
    message=st.none() | st.text(max_size=30),
    pid=st.none() | st.integers(1, 2**22),
    started_at=seconds,
    ended_at=seconds,
    started_mono=seconds,
    ended_mono=seconds,
    cpu_user=seconds,
    cpu_system=seconds,
    peak_memory=st.none() | st.integers(0, 2**50),
    streams=st.dictionaries(
        st.sampled_from(["stdout", "stderr"]),
        st.fixed_dictionaries({name: st.integers(0, 2**60) for name in ("bytes", "kept_from", "lost")}),
    ),
    input=st.fixed_dictionaries({"bytes": st.integers(0, 2**60)}),
    left=group,
    killed=group,
    unreached=group,
    held=st.lists(st.sampled_from(["stdout", "stderr"])),
)  # fmt: skip


@given(result=results)
def test_it_arrives_as_it_was_sent(result: Result) -> None:
    frame = Frame(Kind.END, 1, memoryview(pack(result.to_map())))
    assert Result.from_map(unpack(frame)) == result


@given(result=results)
def test_what_travels_beside_the_fields(result: Result) -> None:
    sent = result.to_map()
    more = {"status", "duration"}
    more |= {"errno_name"} if result.errno is not None else set()
    more |= {"signal_name"} if result.signal is not None else set()
    assert set(sent) == {each.name for each in fields(Result)} | more
    assert 0 <= result.status <= 255
    if result.started_mono is not None and result.ended_mono is not None:
        assert sent["duration"] == result.ended_mono - result.started_mono
    else:
        assert sent["duration"] is None


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (Result("a", Outcome.EXITED, code=0), 0),
        (Result("a", Outcome.EXITED, code=255), 255),
        (Result("a", Outcome.EXITED, code=None), 125),
        (Result("a", Outcome.SIGNALED, signal=9), 137),
        (Result("a", Outcome.SIGNALED, signal=15, ended_by=EndedBy.KILL), 143),
        (Result("a", Outcome.TIMED_OUT, signal=15, ended_by=EndedBy.TIMEOUT), 124),
        (Result("a", Outcome.OOM_KILLED, signal=9), 137),
        (Result("a", Outcome.NOT_STARTED, stage="exec", errno=errno.ENOENT), 127),
        (Result("a", Outcome.NOT_STARTED, stage="exec", errno=errno.EACCES), 126),
        (Result("a", Outcome.NOT_STARTED, stage="exec", errno=errno.ENOEXEC), 126),
        (Result("a", Outcome.NOT_STARTED, stage="cwd", errno=errno.ENOENT), 125),
        (Result("a", Outcome.NOT_STARTED, stage="user"), 125),
        (Result("a", Outcome.UNKNOWN, message="the supervisor was restarted"), 125),
    ],
)
def test_the_exit_status(result: Result, status: int) -> None:
    assert result.status == result.to_map()["status"] == status


class TestFromOtherVersions:
    """What a newer or a broken peer sends becomes `unknown`, and never an exception or a success."""

    def test_more_fields_are_ignored(self) -> None:
        sent = {**Result("a", Outcome.EXITED, code=3).to_map(), "gpu_seconds": 5}
        assert Result.from_map(sent) == Result("a", Outcome.EXITED, code=3)

    @pytest.mark.parametrize("outcome", ["vanished", None, 5, [], {}])
    def test_an_outcome_that_is_not_known(self, outcome: object) -> None:
        found = Result.from_map({"id": "a", "outcome": outcome, "code": 0})
        assert found.outcome is Outcome.UNKNOWN
        assert found.status == 125
        assert found.message is not None
        assert repr(outcome) in found.message

    @pytest.mark.parametrize("ended_by", ["cosmic ray", None, 5, [], {}])
    def test_an_ender_that_is_not_known(self, ended_by: object) -> None:
        assert (
            Result.from_map({"id": "a", "outcome": "exited", "code": 0, "ended_by": ended_by}).ended_by
            is None
        )

    def test_nothing_at_all(self) -> None:
        assert Result.from_map({}).outcome is Outcome.UNKNOWN


class TestSignals:
    """The table by hand agrees with the system's."""

    @pytest.mark.parametrize("each", [s for s in signal.Signals if s.name not in {"SIGRTMIN", "SIGRTMAX"}])
    def test_the_systems_names(self, each: signal.Signals) -> None:
        assert signal_number(each.name) == each.value
        assert signal_name(each.value) == each.name

    @pytest.mark.parametrize("number", range(1, 65))
    def test_each_number_has_a_name_that_leads_back(self, number: int) -> None:
        assert signal_number(str(number)) == number
        # 32 and 33 are the C library's own and have no names.
        if number not in {32, 33}:
            assert signal_number(signal_name(number)) == number

    @pytest.mark.parametrize("text", ["TERM", "SIGTERM", "sigterm", "term", "15"])
    def test_the_ways_to_write_one(self, text: str) -> None:
        assert signal_number(text) == 15

    @pytest.mark.parametrize(
        "text", ["", "0", "65", "-9", "+9", " 9", "9.0", "SIG", "NOPE", "SIGSIGTERM", "٩", "9" * 5000]
    )
    def test_what_is_none(self, text: str) -> None:
        assert signal_number(text) is None
