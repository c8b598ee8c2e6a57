"""Who sends: the resource of everything that leaves, as the session is now."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "guestd"
#: The same words as Go's, which most others take from there.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def resource_of(identity: Mapping[str, Any]) -> Resource:
    """OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME win, but for what says which session it is."""
    machine = platform.machine()
    usual = Resource(
        {
            "service.name": NAME,
            "service.version": str(identity.get("version", "")),
            "host.name": str(identity.get("host", "")),
            "host.arch": _ARCHITECTURES.get(machine, machine),
            "os.type": "linux",
            "os.version": platform.release(),
        }
    )
    own = Resource(
        {
            "session.id": str(identity.get("session", "")),
            "guestd.session.generation": int(identity.get("generation", 0)),
            "service.instance.id": str(identity.get("session", "")),
            "host.boot.id": str(identity.get("boot", "")),
            "telemetry.sdk.language": "python",
            "telemetry.sdk.name": "opentelemetry",
        }
    )
    detected = OTELResourceDetector().detect()
    name = os.environ.get("OTEL_SERVICE_NAME")
    named = Resource({"service.name": name}) if name else Resource.get_empty()
    return usual.merge(detected).merge(named).merge(own)


def scope_of(identity: Mapping[str, Any]) -> InstrumentationScope:
    """What has made it."""
    return InstrumentationScope(NAME, str(identity.get("version", "")))
