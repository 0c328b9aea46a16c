"""The running worker: its loops, clock, signals, processes and probes."""
