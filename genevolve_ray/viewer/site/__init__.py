"""The pages of `genevolve view`: an index over a run, a server that only reads it, and pages without a server."""
