"""Suites and scoring: arms compared over seeds, with intervals."""
