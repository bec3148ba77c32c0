"""Readers of the published rows (bench, RL, SFT): streamed, bounded, and with a reason for every excluded row."""
