"""File systems and files: what is mounted where, and how it does."""

from __future__ import annotations

#: The variable in which the worker is told what to do.
REQUEST = "GUESTD_JOB_STORAGE"
