"""The exporter's process: OpenTelemetry is here and nowhere else."""
