"""The wheel as a user gets it, in an environment of its own, and what ships around it."""

from __future__ import annotations
