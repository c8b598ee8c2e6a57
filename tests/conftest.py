"""The suite's own rules, for every tier: nothing is left behind, and nothing is logged unannounced."""

from __future__ import annotations

pytest_plugins = ["tests.support.leaks", "pytester"]
