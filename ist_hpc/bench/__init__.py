"""Benchmarks that print ratios: what this package does beside the least that has to be done."""
