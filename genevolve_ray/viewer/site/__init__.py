"""Pages over stored runs, for a browser: an index of trajectories, a server that only reads, and a static copy."""
