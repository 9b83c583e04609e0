"""Benchmarks: how fast, beside other programs that run the same weights on the same threads."""
