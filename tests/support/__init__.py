"""What tests share: leak detectors, the private namespace, fault-injecting streams."""

from __future__ import annotations
