"""guestctl: the guest from a terminal or a script. Knows the client library and nothing below it."""

from __future__ import annotations
