"""Frozen corpora: what the tools of a run answered, recorded while it runs, kept as one folder, and answered again."""
