"""What a run still lacks, said before anything starts: `genevolve doctor PRESET`, and in part every command's preflight."""
