"""Published data as the parts use it: rows as training examples, and rows as a run's requests."""
