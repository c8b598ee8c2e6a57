"""The Dockerfile, really built, and its containers, really run, by an engine of the tests' own."""

from __future__ import annotations
