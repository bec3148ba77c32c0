"""Adapters of published data: rows as training examples, and rows as a run's requests."""
