"""What a machine can run, and what a run still lacks, told before anything starts."""
