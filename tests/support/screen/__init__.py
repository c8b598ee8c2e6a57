"""What is on a terminal's screen, judged by a terminal that shares no line with guestd: xterm.js, without a window."""

from __future__ import annotations
