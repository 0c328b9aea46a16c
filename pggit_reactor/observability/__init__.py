"""Metrics, logs and probes: what others see of a running process."""
