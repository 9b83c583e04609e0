"""Benchmarks with a file of their own: `python -m benchmarks.NAME`. Speed is `stepwell bench`."""
