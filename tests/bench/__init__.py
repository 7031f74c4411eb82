"""Benchmarks: ours beside a reference, measured in turns in one run, since one machine's speed drifts within minutes.

`make bench` runs all, `make bench BENCH=platform` one. A missed goal is said, and fails nothing.
"""
