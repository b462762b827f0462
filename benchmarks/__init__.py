"""Benchmarks of detection: ratios, each measured in one run and held against its bar."""
