"""Jobs: rows worked on side by side through stages, resumable, under a budget."""
