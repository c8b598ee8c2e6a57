"""The pure rooms: no I/O, no Trio, every sample whole, byte by byte, and with trailing data."""

from __future__ import annotations
