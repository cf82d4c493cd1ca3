"""The fixed-budget comparison: every method gets the same rows, the same seconds and the same threads.

`benchmarks/compare.py` is its command line; `docs/comparison.md` tells the protocol and holds the results.
"""
