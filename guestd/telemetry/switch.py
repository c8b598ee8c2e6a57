"""Whether telemetry is on, and whose variables are whose. Pure.

guestd's own exporter is set up by the OTEL_* variables of guestd's environment, or by settings. A job's exporter is not
guestd's: it would need the collector's credentials, which stay out of jobs. What a job is to use (a relay's address,
mostly) is set in `env`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guestd.config import Settings

#: Of guestd's environment, what its exporter's process gets.
_FOR_THE_OUTLET = ("OTEL_", "GRPC_", "SSL_CERT_", "REQUESTS_CA_", "PATH", "HOME", "LANG", "TZ")
_PROXIES = frozenset({"http_proxy", "https_proxy", "no_proxy", "all_proxy"})
_ENDPOINTS = tuple(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT" for signal in ("", "TRACES_", "METRICS_", "LOGS_"))


def is_on(settings: Settings, environ: Mapping[str, str]) -> bool:
    """By the setting; by default, when there is a collector to send it to."""
    if settings.telemetry.enabled != "auto":
        return settings.telemetry.enabled == "on"
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return bool(settings.telemetry.endpoint) or any(environ.get(name) for name in _ENDPOINTS)


def outlet_environment(
    settings: Settings, environ: Mapping[str, str], headers: Mapping[str, str]
) -> dict[str, str]:
    """The environment of the exporter's process."""
    from urllib.parse import quote

    found = {
        name: value
        for name, value in environ.items()
        if name.startswith(_FOR_THE_OUTLET) or name.lower() in _PROXIES
    }
    telemetry = settings.telemetry
    if telemetry.endpoint:
        for name in _ENDPOINTS:
            found.pop(name, None)
        found[_ENDPOINTS[0]] = telemetry.endpoint
    if telemetry.protocol != "auto":
        for name in [each for each in found if each.startswith("OTEL_EXPORTER_OTLP") and "PROTOCOL" in each]:
            del found[name]
        found["OTEL_EXPORTER_OTLP_PROTOCOL"] = telemetry.protocol
    if headers:
        found["OTEL_EXPORTER_OTLP_HEADERS"] = ",".join(
            f"{name}={quote(value)}" for name, value in headers.items()
        )
    return found


def read_headers(text: str) -> dict[str, str]:
    """`name: value`, one a line; blank lines and lines that begin with # are left out. ValueError names the line."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, colon, value = stripped.partition(":")
        if not colon or not name.strip() or not name.strip().isascii() or " " in name.strip():
            raise ValueError(f"line {number} is not `name: value`")
        found[name.strip().lower()] = value.strip()
    return found
