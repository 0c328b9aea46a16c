"""Fuzzing of what takes octets from strangers: targets with oracles, seeds, and a driver for long runs."""
