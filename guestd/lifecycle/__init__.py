"""The life of a session: what keeps it awake, its workload, how it stops, and how it is resumed after a pause."""

from __future__ import annotations
