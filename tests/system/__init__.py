"""Real processes, terminals, mounts, signals and sockets, in a private mount and PID namespace."""

from __future__ import annotations
