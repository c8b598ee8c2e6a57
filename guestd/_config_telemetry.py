"""Settings of telemetry and of the audit log."""

from __future__ import annotations

from guestd._config_declare import choice, key, number, path, seconds, size
from guestd._config_kinds import Boolean, ListOf, Octal, Text
from guestd._config_section import Section
from guestd._config_system import VariableName


class Endpoint(Text):
    """Where a collector is."""

    def describe(self) -> str:
        return 'http://HOST:PORT or https://HOST:PORT, or "" for the default'

    def accepts(self, text: str) -> bool:
        return not text or (
            text.startswith(("http://", "https://")) and text.isprintable() and not text.endswith("//")
        )


class Telemetry(Section):
    """Traces, metrics and logs, sent by OTLP. The OTEL_* variables hold where a setting here is left out."""

    enabled: str = choice(
        "Whether telemetry is sent; auto: when OTEL_EXPORTER_OTLP_ENDPOINT or telemetry.endpoint is set.",
        "auto", "auto", "on", "off",
    )  # fmt: skip
    endpoint: str = key(
        "The collector's base URL; each signal has its path below it.", Endpoint(), "",
        "OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4318",
    )  # fmt: skip
    protocol: str = choice(
        "How it is sent; auto: OTEL_EXPORTER_OTLP_PROTOCOL, else http/protobuf.",
        "auto", "auto", "http/protobuf", "grpc",
    )  # fmt: skip
    headers_file: str = path(
        "A file with headers for the collector, `name: value` a line, that only its owner can read.",
        "", "OTEL_EXPORTER_OTLP_HEADERS",
    )  # fmt: skip
    delay: float = seconds(
        "How long a span or a record waits for others to leave with it.", "2s", "50ms", "5m"
    )
    interval: float = seconds("How often metrics are sent.", "30s", "100ms", "1h")
    sampling: float = seconds("How often processor time and memory are looked at.", "5s", "100ms", "1h")
    timeout: float = seconds("How long one request to the collector may take.", "10s", "100ms", "5m")
    flush: float = seconds(
        "The longest wait for the collector at the end of the session, within `stop.grace`.",
        "2s",
        "0",
        "1m",
    )
    queue: int = number(
        "Spans, and records, that wait for the collector; above it the oldest are dropped, and counted.",
        4096, 64, 1_000_000,
    )  # fmt: skip
    arguments: str = choice(
        "What of a command line is recorded, in spans and in the audit log: all of it with secrets masked, all of"
        " it as it is, the program's name, or nothing.",
        "masked", "masked", "full", "program", "none",
    )  # fmt: skip
    environment: tuple[str, ...] = key(
        "Variables of a job's environment that its span records; what looks like a secret is masked.",
        ListOf(VariableName()), (), "none",
    )  # fmt: skip
    job_metrics: bool = key(
        "Each job that runs has metrics of its own: processor time, memory now, and its peak.",
        Boolean(), default=True,
    )  # fmt: skip


class Audit(Section):
    """A record of each thing that was done."""

    enabled: bool = key("The records are written to a file.", Boolean(), default=True)
    path: str = path("The file.", "", "runtime_dir/audit.jsonl")
    mode: int = key("Its mode.", Octal(0, 0o777), 0o600)
    limit: int = size(
        "A file that has grown to this is put aside, and another is begun.", "4 MiB", "4 KiB", "16 GiB"
    )
    files: int = number("Files that are kept beside the newest; the oldest go first.", 1, 0, 1000)
    queue: int = number(
        "Records that wait to be written; above it the oldest are dropped, and counted in a record.",
        8192, 64, 1_000_000,
    )  # fmt: skip
