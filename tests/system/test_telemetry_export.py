"""What a collector gets: every signal, decoded with the published classes, and how the spans hang together."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.collector import Collector, collecting, collecting_grpc
from tests.support.life import serving
from tests.support.peer import Peer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from tests.support.server import Server

QUICK = "[telemetry]\ndelay = '50ms'\ninterval = '300ms'\nsampling = '100ms'\n"
TRACE, ABOVE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = {"traceparent": f"00-{TRACE}-{ABOVE}-01", "tracestate": "vendor=value"}

#: A program with telemetry of its own: the SDK as a harness has it.
_HARNESS = """
import os
from opentelemetry import context, propagate
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
provider = TracerProvider(resource=Resource({"service.name": "harness"}))
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
above = propagate.extract({name: os.environ[name.upper()] for name in ("traceparent", "tracestate")})
with provider.get_tracer("harness").start_as_current_span("thinking", context=above):
    pass
"""


@contextmanager
def exporting(collector: Collector, config: str = QUICK, **more: str) -> Generator[tuple[Server, Peer]]:
    """A guestd with that collector, and a connection to it."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, **more}
    with serving(config=config, environment=environment) as server, Peer(server.address) as peer:
        yield server, peer


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


def test_a_command_hangs_below_its_caller_and_above_its_child_s_own_spans(collector: Collector) -> None:
    with exporting(collector) as (_, peer):
        call = peer.open(
            "exec", argv=[sys.executable, "-c", _HARNESS], id="harness",
            env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}, **CONTEXT,
        )  # fmt: skip
        result = call.end()
        assert result["code"] == 0, call.stderr
        command = collector.span(guestd__kind="job", guestd__job__id="harness")
        inner = collector.span("thinking")
    assert (command.trace_id, command.parent) == (TRACE, ABOVE)
    assert (inner.trace_id, inner.parent) == (TRACE, command.span_id)
    assert command.state == inner.state == "vendor=value"
    assert command.name == f"command {sys.executable.rpartition('/')[2]}"
    assert command.start <= inner.start <= inner.end <= command.end
    assert (command.start, command.end) == pytest.approx((result["started_at"], result["ended_at"]), abs=1e-6)
    assert not command.failed
    assert command.attributes["process.exit.code"] == 0
    assert command.attributes["process.pid"] == result["pid"]
    assert command.attributes["process.command_args"][1] == "-c"
    assert command.attributes["guestd.job.cpu.user"] == pytest.approx(result["cpu_user"])
    assert command.attributes["guestd.job.outcome"] == "exited"
    assert command.attributes["guestd.job.stdout.bytes"] == 0
    assert inner.resource["service.name"] == "harness"


def test_who_sends_is_said_with_everything(collector: Collector) -> None:
    more = {
        "OTEL_RESOURCE_ATTRIBUTES": "team=core,deployment.environment=test",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=s%20t",
    }
    with exporting(collector, **more) as (_, peer):
        hello = peer.hello
        peer.open("exec", argv=["true"]).end()
        span, log = collector.span("command true"), collector.log("exec")
        collector.point("guestd.jobs.started")
    assert span.resource == log.resource
    assert span.resource["service.name"] == span.scope == "guestd"
    assert span.resource["session.id"] == span.attributes["session.id"] == hello["session_id"]
    assert span.resource["guestd.session.generation"] == hello["generation"]
    assert span.resource["host.boot.id"] == hello["boot_id"]
    assert (span.resource["team"], span.resource["deployment.environment"]) == ("core", "test")
    assert span.resource["host.name"]
    assert all(each["x-key"] == "s t" for each in collector.headers)


def test_everything_that_lasts_has_a_span(collector: Collector) -> None:
    # Far more than a collector that answers takes to have everything; its bound is tested with those that do not.
    config = QUICK + "flush = '10s'\n[workload]\ncommand = ['sleep', '1000']\nrestart = 'never'\n"
    with serving(config=config, environment={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}) as server:
        with Peer(server.address) as peer:
            before = peer.hello["session_id"]
            failed = peer.open("exec", shell="printf 12345; printf 123 >&2; exit 3", id="failed", **CONTEXT)
            failed.end()
            shell = peer.open("shell", id="sh", argv=["sh", "-c", "printf up; exit 5"])
            shell.end()
            peer.open("attach", id="failed", traceparent=f"00-{'c' * 32}-{'d' * 16}-01").end()
            after = peer.ask("resume")["session_id"]
            peer.open("exec", argv=["/no/such"], id="missing").end()
        collector.span("connection")
        assert server.stop() == 0
    failed_span = collector.span(guestd__kind="job", guestd__job__id="failed")
    assert failed_span.name == "command"
    assert (failed_span.failed, failed_span.attributes["guestd.job.status"]) == (True, 3)
    assert failed_span.attributes["process.command_line"] == "printf 12345; printf 123 >&2; exit 3"
    assert failed_span.attributes["guestd.job.stdout.bytes"] == 5
    assert failed_span.attributes["guestd.job.stderr.bytes"] == 3
    shell_span = collector.span(guestd__kind="job", guestd__job__id="sh")
    assert (shell_span.name, shell_span.failed, shell_span.attributes["process.exit.code"]) == (
        "shell sh",
        False,
        5,
    )
    first, second = sorted(
        collector.found("attachment", guestd__job__id="failed"), key=lambda each: each.start
    )
    # Whoever started it looks on below it; whoever comes with a trace of their own, in that.
    assert (first.trace_id, first.parent) == (TRACE, ABOVE)
    assert (second.trace_id, second.parent) == ("c" * 32, "d" * 16)
    assert second.attributes["guestd.attachment.sent"] == 8
    seen = collector.span("attachment", guestd__job__id="sh")
    assert (seen.trace_id, seen.parent) == (shell_span.trace_id, shell_span.span_id)
    assert seen.attributes["guestd.attachment.role"] == "owner"
    missing = collector.span(guestd__job__id="missing", guestd__kind="job")
    assert (missing.failed, missing.attributes["guestd.job.outcome"]) == (True, "not_started")
    assert "no such file" in missing.why
    resume = collector.span("resume")
    assert (resume.attributes["guestd.resume.before"], resume.attributes["guestd.resume.session"]) == (
        before,
        after,
    )
    assert collector.span("workload start").attributes["guestd.job.id"] == "workload"
    workload = collector.span(guestd__kind="job", guestd__job__id="workload")
    assert workload.attributes["guestd.job.ended_by"] == "stop"
    stop = collector.span("stop")
    assert stop.attributes["guestd.stop.cause"] == "signal"
    # What is told after a resume is the next session's.
    assert (failed_span.attributes["session.id"], stop.resource["session.id"]) == (before, after)
    assert len({each.span_id for each in collector.spans}) == len(collector.spans)


def test_metrics_tell_what_bills_and_alarms_are_made_of(collector: Collector) -> None:
    with exporting(collector) as (_, peer):
        peer.open("exec", shell="printf 1234; exit 1").end()
        peer.open("exec", argv=["true"]).end()
        busy = peer.open("exec", shell="echo up; while :; do :; done", id="busy")
        busy.lines(1)
        ended = collector.point("guestd.jobs.ended", guestd__job__success=False)
        assert (ended.value, ended.monotonic, ended.attributes["guestd.job.outcome"]) == (1, True, "exited")

        def reaches(name: str, value: float, **attributes: object) -> None:
            # What was sent before may tell of an earlier moment.
            collector.until(lambda: collector.point(name, **attributes).value == value)

        reaches("guestd.job.duration", 2)
        duration = collector.point("guestd.job.duration")
        assert (duration.kind, duration.unit) == ("histogram", "s")
        assert duration.sum > 0
        reaches("guestd.jobs.running", 1, guestd__job__kind="command")
        reaches("guestd.jobs.output", 4, guestd__stream="stdout")
        reaches("guestd.jobs.started", 3)
        reaches("guestd.idle", 0)
        cpu = collector.until(lambda: collector.point("guestd.job.cpu.time", guestd__job__id="busy"))
        collector.until(
            lambda: collector.point("guestd.job.cpu.time", guestd__job__id="busy").value > cpu.value
        )
        assert collector.point("guestd.job.memory.peak", guestd__job__id="busy").value > 0
        whole = collector.point("guestd.session.memory").value
        assert collector.point("guestd.session.memory.peak").value >= whole > 0
        assert collector.point("guestd.session.cpu.time").value > 0
        assert collector.point("guestd.serve.cpu.time").value > 0
        assert collector.point("guestd.loop.lag").kind == "histogram"
        reaches("guestd.connections", 1)
        assert collector.point("guestd.restarts").value == 0
        peer.ask("kill", id="busy")
        assert collector.until(
            lambda: collector.found(guestd__job__id="busy", guestd__kind="job")
        )[0].attributes["guestd.job.signal"] == "SIGTERM"  # fmt: skip


def test_the_last_record_of_a_session_leaves_it_too(collector: Collector) -> None:
    with exporting(collector, f"{QUICK}flush = '20s'\n[stop]\ngrace = '30s'\n") as (server, peer):
        peer.open("exec", argv=["true"]).end()
        assert server.stop() == 0
        # It is spared until everything else has ended.
        assert "the exporter died" not in server.log
        lines = (server.directory / "audit.jsonl").read_text().splitlines()
    assert '"event":"log_closed"' in lines[-1]
    collector.until(lambda: {each.body for each in collector.logs} >= set(lines))
    assert collector.log("stop_ended").attributes["guestd.audit.cause"] == "signal"


def test_records_of_the_audit_log_come_as_they_are_in_the_file(collector: Collector) -> None:
    with exporting(collector) as (server, peer):
        peer.open("exec", argv=["tool", "--token", "hunter2"], id="one").end()
        collector.log("job_ended")
        lines = (server.directory / "audit.jsonl").read_text().splitlines()
        collector.until(lambda: {each.body for each in collector.logs} >= set(lines))
        assert collector.log("exec").attributes["guestd.audit.who"] == f"unix uid 0 pid {os.getpid()}"
        assert "hunter2" not in "".join(lines)


@pytest.mark.parametrize("rule", ["masked", "none"])
def test_a_rule_says_what_of_a_command_is_told(collector: Collector, rule: str) -> None:
    config = QUICK + f"arguments = '{rule}'\nenvironment = ['SHOWN', 'MY_TOKEN']\n"
    with exporting(collector, config) as (server, peer):
        env = {"SHOWN": "yes", "MY_TOKEN": "hunter2", "HIDDEN": "hunter3"}
        peer.open("exec", argv=["true", "--password=hunter4"], env=env, id="one").end()
        span = collector.span(guestd__job__id="one", guestd__kind="job")
        collector.log("job_ended")
        told = str(span) + str(collector.logs) + (server.directory / "audit.jsonl").read_text()
    assert "hunter" not in told
    assert span.attributes["process.environment_variable.SHOWN"] == "yes"
    assert span.attributes["process.environment_variable.MY_TOKEN"] == "***"
    if rule == "masked":
        assert span.attributes["process.command_args"] == ["true", "--password=***"]
    else:
        assert not {"process.command_args", "process.command_line", "process.executable.name"} & set(
            span.attributes
        )
        assert span.name == "command"


def test_what_is_not_sampled_is_passed_on_and_not_sent(collector: Collector) -> None:
    with exporting(collector) as (_, peer):
        quiet = peer.open("exec", shell="echo $TRACEPARENT", id="quiet", traceparent=f"00-{TRACE}-{ABOVE}-00")
        quiet.end()
        loud = peer.open("exec", shell="echo $TRACEPARENT", id="loud", **CONTEXT)
        loud.end()
        span = collector.span(guestd__job__id="loud", guestd__kind="job")
        assert loud.stdout.decode().strip() == f"00-{TRACE}-{span.span_id}-01"
        version, trace, below, flags = quiet.stdout.decode().strip().split("-")
        assert (version, trace, flags) == ("00", TRACE, "00")
        assert below != ABOVE
    assert not collector.found(guestd__job__id="quiet", guestd__kind="job")


def test_without_a_collector_nothing_is_there_and_the_trace_is_passed_through() -> None:
    # What a job's own exporter would use is not guestd's to hand on.
    more = {"OTEL_EXPORTER_OTLP_HEADERS": "x=secret", "OTEL_SERVICE_NAME": "agent"}
    with serving(environment=more) as server, Peer(server.address) as peer:
        call = peer.open("exec", shell="echo $TRACEPARENT; env | grep ^OTEL", **CONTEXT)
        call.end()
        assert call.stdout.decode().splitlines() == [CONTEXT["traceparent"], "OTEL_SERVICE_NAME=agent"]
        status: dict[str, Any] = peer.ask("status")
        assert status["telemetry"] == {"on": False, "failure": None}


def test_headers_come_from_a_file_that_others_cannot_read(collector: Collector, tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_text("Authorization: Bearer a,b=c d\n")
    config = QUICK + f"headers_file = '{path}'\n"
    path.chmod(0o600)
    with exporting(collector, config) as (_, peer):
        collector.until(lambda: collector.headers)
        assert all(each["authorization"] == "Bearer a,b=c d" for each in collector.headers)
        assert peer.ask("status")["telemetry"]["failure"] is None
    path.chmod(0o644)
    with exporting(collector, config) as (_, peer):
        assert "chmod 600" in peer.ask("status")["telemetry"]["failure"]
        assert peer.open("exec", argv=["true"]).end()["code"] == 0


def test_grpc_when_the_variables_say_so() -> None:
    with (
        collecting_grpc() as collector,
        exporting(collector, OTEL_EXPORTER_OTLP_PROTOCOL="grpc") as (_, peer),
    ):
        peer.open("exec", argv=["true"], id="one").end()
        collector.span(guestd__job__id="one", guestd__kind="job")
        collector.log("exec")
        collector.point("guestd.jobs.ended")


def test_mounts_and_the_guest_s_own_programs_are_seen_too(collector: Collector, tmp_path: Path) -> None:
    place = tmp_path / "memory"
    with exporting(collector) as (server, peer):
        # Whatever a fact holds is masked as a command line is.
        (source := tmp_path / "token=hunter2").mkdir()
        peer.ask("mount", path=str(place), type="bind", source=str(source))
        span = collector.span("mount", guestd__mount__path=str(place))
        assert (span.failed, span.attributes["guestd.mount.type"]) == (False, "bind")
        assert span.attributes["guestd.mount.source"] == f"{tmp_path}/token=***"
        collector.until(
            lambda: collector.point("guestd.mount.healthy", guestd__mount__path=str(place)).value == 1
        )
        peer.ask("unmount", path=str(place))
        assert not collector.span("unmount", guestd__unmount__path=str(place)).failed
        collector.log("unmount_ended")
        text = (server.directory / "audit.jsonl").read_text()
        assert "hunter2" not in text
        assert text.count('"event":"mount_ended"') == 1
        assert text.count('"event":"mount"') == 1
