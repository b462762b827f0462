"""Suites, judges, saved replies and the statistics of an evaluation."""
