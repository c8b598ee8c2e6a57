"""The test suite, in tiers; `./tests/run` sets up what each needs and runs them."""

from __future__ import annotations
