"""Trio with memory streams and a jumping clock; never a real child here."""

from __future__ import annotations
