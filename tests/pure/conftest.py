"""Here is what Hypothesis is for."""

from __future__ import annotations

from tests.support import examples

__all__ = ["examples"]
