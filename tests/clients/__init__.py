"""Clients written from the protocol alone, against a running guestd."""

from __future__ import annotations
