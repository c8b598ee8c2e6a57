"""How Hypothesis runs here: nothing is timed, so that a slow machine finds no failures of its own."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("guestd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("guestd")
