"""The commands that process rows: their inputs, the parts that they start, and their output files."""
