"""Suites and scoring: policies measured on held-out requests."""
