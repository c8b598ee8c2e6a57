"""The supervisor inside an agent's microVM: shells that outlive connections, commands with exact results."""

from __future__ import annotations

__version__ = "0.1.0"
