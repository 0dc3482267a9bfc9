"""Benchmarks: figures for people, never part of the tests. Ratios within one run are what counts."""
