"""Measures guestd against floors and peers, in one run on one machine: `python -m bench`. See
docs/benchmarks.md.
"""

from __future__ import annotations
