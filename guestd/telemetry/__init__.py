"""Traces, metrics and audit. Nothing of it is imported before READY, and nothing of OpenTelemetry ever in this process:
that is in a process of its own (see outlet/).
"""
