"""The scripted engine: a deterministic fake with latency and faults, selected by name."""
