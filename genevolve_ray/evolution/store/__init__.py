"""The run store: what a run leaves on disk, committed step by step."""
