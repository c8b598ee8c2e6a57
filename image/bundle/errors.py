"""What image/opt says when it cannot go on."""

from __future__ import annotations


class CannotBuild(Exception):
    """The text says what was wanted, what is wrong, and what to do."""
