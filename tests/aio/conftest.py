"""No process is created in this tier."""

from __future__ import annotations

from tests.support import examples
from tests.support.no_children import no_children

__all__ = ["examples", "no_children"]
