"""Metrics: what bills and alarms are made of. Instruments are the SDK's; those of single jobs, which come and go, are
made for each sending, so that nothing grows with how many jobs there have been.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    InMemoryMetricReader,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

from guestd.telemetry.outlet.resources import NAME
from guestd.telemetry.outlet.sampling import Usage, job_usage, session_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

#: From a command that does nothing to a night's work, in seconds.
_DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400)
_LAGS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
#: Jobs that have metrics of their own at once.
_JOBS_MAX = 1000


class Metrics:
    """See the module. Told from the thread that hears serve, collected from the one that sends."""

    def __init__(self, exporter: Any, started: int, *, of_jobs: bool) -> None:  # noqa: ANN401  of HTTP or of gRPC
        # What a periodic reader asks an exporter for, too.
        self._reader = InMemoryMetricReader(
            preferred_temporality=getattr(exporter, "_preferred_temporality", None),
            preferred_aggregation=getattr(exporter, "_preferred_aggregation", None),
        )
        self._provider = MeterProvider(
            metric_readers=[self._reader], shutdown_on_exit=False,
            views=[
                View(instrument_name="guestd.job.duration", aggregation=ExplicitBucketHistogramAggregation(_DURATIONS)),
                View(instrument_name="guestd.loop.lag", aggregation=ExplicitBucketHistogramAggregation(_LAGS)),
            ],
        )  # fmt: skip
        self._started = started
        self._of_jobs = of_jobs
        self._lock = threading.Lock()
        #: Set when a job has begun.
        self.stirred = threading.Event()
        self._state: dict[str, Any] = {}
        self._jobs: dict[str, dict[str, Any]] = {}
        self._usages: dict[str, Usage] = {}
        self._peaks: dict[str, int] = {}
        self._session = Usage(0.0, 0)
        self._cpu = 0.0
        self._peak = self._session_peak = 0
        self.report: Callable[[], Mapping[str, Mapping[str, Any]]] = dict
        self._make()

    def _make(self) -> None:
        meter = self._provider.get_meter(NAME)
        self._ended = meter.create_counter("guestd.jobs.ended", "{job}", "Jobs that have ended")
        self._duration = meter.create_histogram("guestd.job.duration", "s", "How long jobs have run")
        self._job_cpu = meter.create_counter("guestd.jobs.cpu.time", "s", "Processor time of jobs that ended")
        self._bytes = meter.create_counter("guestd.jobs.output", "By", "What jobs have printed")
        self._input = meter.create_counter("guestd.jobs.input", "By", "What was written to jobs")
        self._sent = meter.create_counter("guestd.attachments.sent", "By", "Output sent to clients")
        self._gaps = meter.create_counter(
            "guestd.attachments.gaps", "By", "Output that clients could not have"
        )
        self._others = meter.create_counter(
            "guestd.operations", "{operation}", "Stops, resumes, mounts and the like"
        )
        self._lag = meter.create_histogram("guestd.loop.lag", "s", "How late the event loop was")

        def gauge(name: str, unit: str, about: str, read: Callable[[], Iterable[Observation]]) -> None:
            meter.create_observable_gauge(name, [lambda _: read()], unit, about)

        def counter(name: str, unit: str, about: str, read: Callable[[], Iterable[Observation]]) -> None:
            meter.create_observable_counter(name, [lambda _: read()], unit, about)

        gauge("guestd.jobs.running", "{job}", "Jobs that run", self._running)
        gauge("guestd.jobs.kept", "{job}", "Jobs that have ended and are kept", lambda: self._told("kept"))
        counter("guestd.jobs.started", "{job}", "Jobs started", lambda: self._told("started"))
        gauge("guestd.connections", "{connection}", "Connections", lambda: self._told("connections"))
        gauge("guestd.attachments", "{attachment}", "Attachments", lambda: self._told("attachments"))
        gauge("guestd.tapes", "By", "Output kept", lambda: self._told("tapes"))
        counter(
            "guestd.restarts", "{restart}", "Times that serve was replaced", lambda: self._told("restarts")
        )
        gauge(
            "guestd.workload.starts", "{start}", "Times that the workload was started",
            lambda: self._told("workload_starts"),
        )  # fmt: skip
        gauge("guestd.mount.healthy", "1", "1 where a mount works, 0 where it does not", self._mounts)
        gauge("guestd.idle", "1", "1 while nothing keeps the session awake", self._idle)
        gauge(
            "guestd.idle.time", "s", "How long nothing has kept it awake", lambda: self._activity("idle_for")
        )
        gauge("guestd.stops_in", "s", "When it stops by itself", lambda: self._activity("stops_in"))
        counter("guestd.serve.cpu.time", "s", "Processor time of serve itself", lambda: self._told("cpu"))
        counter("guestd.session.cpu.time", "s", "Processor time of the whole session", self._session_cpu)
        gauge("guestd.session.memory", "By", "Memory of the whole session", self._session_memory)
        gauge("guestd.session.memory.peak", "By", "Its highest since the last sending", self._session_peaks)
        counter("guestd.telemetry.dropped", "{item}", "Spans and records that were dropped", self._dropped)

    # ------------------------------------------------------------------------------------ being told

    def state(self, told: dict[str, Any]) -> None:
        """What serve knows."""
        for lag in told.pop("lags", ()):
            self._lag.record(lag)
        with self._lock:
            self._state = told
            for span_id, job in self._jobs.items():
                job["cgroup"] = told.get("groups", {}).get(span_id) or job.get("cgroup")
                job["pid"] = told.get("pids", {}).get(span_id) or job.get("pid")

    def opened(self, told: Mapping[str, Any]) -> None:
        """Something goes on."""
        job = told.get("job")
        if job is not None:
            with self._lock:
                self._jobs[told["id"]] = dict(job)
            self.stirred.set()

    def ended(self, told: Mapping[str, Any]) -> None:
        """Something has ended."""
        kind, facts, job = told["kind"], told["facts"], told.get("job")
        if kind == "attachment":
            self._sent.add(facts.get("sent") or 0)
            self._gaps.add(facts.get("gaps") or 0)
        elif job is None:
            if kind != "connection":
                self._others.add(1, {"guestd.kind": kind, "guestd.failed": facts.get("why") is not None})
        else:
            with self._lock:
                for known in (self._jobs, self._usages, self._peaks):
                    known.pop(told["id"], None)
            self._job_ended(job)

    def _job_ended(self, job: Mapping[str, Any]) -> None:
        result = job.get("result")
        if result is None:
            return
        labels = {"guestd.job.kind": job["kind"], "guestd.job.outcome": result["outcome"]}
        self._ended.add(1, {**labels, "guestd.job.success": result["status"] == 0})
        if result["duration"] is not None:
            self._duration.record(max(0.0, result["duration"]), labels)
        self._job_cpu.add((result["cpu_user"] or 0.0) + (result["cpu_system"] or 0.0))
        for stream, found in result["streams"].items():
            self._bytes.add(found["bytes"], {"guestd.stream": stream})
        self._input.add(result["input"] or 0)

    # ------------------------------------------------------------------------------------ looking

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def sample(self) -> None:
        """Look at processor time and memory."""
        with self._lock:
            serve, jobs = self._state.get("serve"), dict(list(self._jobs.items())[:_JOBS_MAX])
        session = session_usage(serve) if serve else self._session
        usages = {each: job_usage(job.get("pid"), job.get("cgroup")) for each, job in jobs.items()}
        with self._lock:
            self._session = session
            # Whoever is not waited for takes its time along; what was counted stays counted.
            self._cpu = max(self._cpu, session.cpu)
            self._peak = max(self._peak, session.memory)
            self._session_peak = max(self._session_peak, session.memory)
            for each, usage in usages.items():
                if usage is not None and each in self._jobs:
                    self._usages[each] = usage
                    self._peaks[each] = max(self._peaks.get(each, 0), usage.memory)

    def _told(self, name: str) -> list[Observation]:
        with self._lock:
            value = self._state.get(name)
        return [] if value is None else [Observation(value)]

    def _activity(self, name: str) -> list[Observation]:
        with self._lock:
            value = self._state.get("activity", {}).get(name)
        return [] if value is None else [Observation(value)]

    def _running(self) -> list[Observation]:
        with self._lock:
            return [
                Observation(n, {"guestd.job.kind": kind})
                for kind, n in self._state.get("running", {}).items()
            ]

    def _mounts(self) -> list[Observation]:
        with self._lock:
            mounts = self._state.get("mounts", {})
        return [Observation(int(bool(well)), {"guestd.mount.path": path}) for path, well in mounts.items()]

    def _idle(self) -> list[Observation]:
        with self._lock:
            activity = self._state.get("activity")
        return [] if activity is None else [Observation(int(not activity.get("busy")))]

    def _session_cpu(self) -> list[Observation]:
        with self._lock:
            return [Observation(self._cpu)]

    def _session_memory(self) -> list[Observation]:
        with self._lock:
            return [Observation(self._session.memory)]

    def _session_peaks(self) -> list[Observation]:
        with self._lock:
            peak, self._peak = self._peak, self._session.memory
            return [Observation(peak)]

    def _dropped(self) -> list[Observation]:
        # Facts become spans, records and metrics here; what never got here is of no signal yet.
        untold = [Observation(found.value, {"guestd.signal": "facts"}) for found in self._told("untold")]
        return untold + [
            Observation(found["dropped"], {"guestd.signal": name}) for name, found in self.report().items()
        ]

    # ------------------------------------------------------------------------------------ sending

    def collect(self, resource: Resource, scope: InstrumentationScope) -> MetricsData | None:
        """Everything as it is now."""
        found = self._reader.get_metrics_data()
        if found is None:
            return None
        metrics = [
            metric for each in found.resource_metrics for one in each.scope_metrics for metric in one.metrics
        ]
        metrics += self._job_metrics()
        scoped = ScopeMetrics(scope=scope, metrics=metrics, schema_url="")
        return MetricsData([ResourceMetrics(resource=resource, scope_metrics=[scoped], schema_url="")])

    def _job_metrics(self) -> list[Metric]:
        if not self._of_jobs:
            return []
        now = time.time_ns()
        cpu: list[NumberDataPoint] = []
        memory: list[NumberDataPoint] = []
        peak: list[NumberDataPoint] = []
        with self._lock:
            for each, usage in self._usages.items():
                job = self._jobs[each]
                labels = {"guestd.job.id": job["id"], "guestd.job.kind": job["kind"]}
                cpu.append(_point(labels, self._started, now, usage.cpu))
                memory.append(_point(labels, self._started, now, usage.memory))
                peak.append(_point(labels, self._started, now, self._peaks[each]))
        if not cpu:
            return []
        total = Sum(cpu, AggregationTemporality.CUMULATIVE, is_monotonic=True)
        return [
            Metric("guestd.job.cpu.time", "Processor time of a job that runs", "s", total),
            Metric("guestd.job.memory", "Memory of a job that runs", "By", Gauge(memory)),
            Metric("guestd.job.memory.peak", "Its highest", "By", Gauge(peak)),
        ]


def _point(labels: dict[str, str], start: int, now: int, value: float) -> NumberDataPoint:
    return NumberDataPoint(labels, start, now, value)
