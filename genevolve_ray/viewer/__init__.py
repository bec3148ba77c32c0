"""Displays of a run: progress while it lasts and a report when it is over."""
