"""A real kernel in a real machine, guestd as its PID 1, over real vsock."""

from __future__ import annotations
