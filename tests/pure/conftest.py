"""How Hypothesis runs here: nothing is timed, so that a slow machine finds no failures of its own."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("guestd", deadline=None)
settings.load_profile("guestd")
